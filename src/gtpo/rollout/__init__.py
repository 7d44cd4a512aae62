"""Multi-turn rollouts with exact tokens: training uses the token ids that were sampled."""

from gtpo.rollout.build import build_encoder, build_engine, build_prompts, fitting
from gtpo.rollout.chat_encoder import ChatEncoder
from gtpo.rollout.config import PromptConfig, RolloutConfig, SandboxConfig
from gtpo.rollout.encoding import Encoder
from gtpo.rollout.environment import Environments
from gtpo.rollout.formats import FORMATS, FencedFormat, ToolCallFormat, ToolFormat, get_format
from gtpo.rollout.function_tool import FunctionTool
from gtpo.rollout.loop import RolloutBatch, RolloutEngine
from gtpo.rollout.mcp import MCPTools
from gtpo.rollout.prompts import Prompts
from gtpo.rollout.search import SearchTool
from gtpo.rollout.settings import RolloutLimits, Sampling
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.rollout.tools import PythonTool, Tool, ToolResult, ToolState, ToolUse

__all__ = [
    "FORMATS",
    "ChatEncoder",
    "Encoder",
    "Environments",
    "FencedFormat",
    "FunctionTool",
    "MCPTools",
    "PromptConfig",
    "Prompts",
    "PythonTool",
    "RolloutBatch",
    "RolloutConfig",
    "RolloutEngine",
    "RolloutLimits",
    "Sampling",
    "SandboxConfig",
    "SearchTool",
    "Tool",
    "ToolCallFormat",
    "ToolFormat",
    "ToolResult",
    "ToolSpec",
    "ToolState",
    "ToolUse",
    "build_encoder",
    "build_engine",
    "build_prompts",
    "fitting",
    "get_format",
]
