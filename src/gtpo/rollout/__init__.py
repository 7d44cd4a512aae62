"""Multi-turn rollouts with exact tokens: what was sampled is what is trained on."""

from gtpo.rollout.encoding import ChatEncoder
from gtpo.rollout.formats import FORMATS, FencedFormat, ToolCallFormat, ToolFormat, get_format
from gtpo.rollout.loop import RolloutBatch, RolloutEngine
from gtpo.rollout.prompts import PromptArguments, Prompts
from gtpo.rollout.search import SearchTool
from gtpo.rollout.settings import RolloutLimits, Sampling
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.rollout.tools import PythonTool, Tool, ToolResult, ToolState, ToolUse
from gtpo.rollout.toolset import ToolArguments, ToolChoice

__all__ = [
    "FORMATS",
    "ChatEncoder",
    "FencedFormat",
    "PromptArguments",
    "Prompts",
    "PythonTool",
    "RolloutBatch",
    "RolloutEngine",
    "RolloutLimits",
    "Sampling",
    "SearchTool",
    "Tool",
    "ToolArguments",
    "ToolCallFormat",
    "ToolChoice",
    "ToolFormat",
    "ToolResult",
    "ToolSpec",
    "ToolState",
    "ToolUse",
    "get_format",
]
