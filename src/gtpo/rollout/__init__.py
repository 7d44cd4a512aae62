"""Multi-turn rollouts with exact tokens: what was sampled is what is trained on."""

from gtpo.rollout.encoding import ChatEncoder
from gtpo.rollout.formats import FORMATS, FencedFormat, ToolCallFormat, ToolFormat, get_format, system_prompt_for
from gtpo.rollout.loop import RolloutBatch, RolloutEngine
from gtpo.rollout.settings import RolloutLimits, Sampling
from gtpo.rollout.tools import PythonTool, ToolArguments, ToolState

__all__ = [
    "FORMATS",
    "ChatEncoder",
    "FencedFormat",
    "PythonTool",
    "RolloutBatch",
    "RolloutEngine",
    "RolloutLimits",
    "Sampling",
    "ToolArguments",
    "ToolCallFormat",
    "ToolFormat",
    "ToolState",
    "get_format",
    "system_prompt_for",
]
