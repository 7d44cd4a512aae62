"""Multi-turn rollouts with exact tokens: what was sampled is what is trained on."""

from gtpo.rollout.encoding import ChatEncoder
from gtpo.rollout.formats import FORMATS, FencedFormat, ToolCallFormat, ToolFormat, get_format, system_prompt_for
from gtpo.rollout.loop import RolloutBatch, RolloutEngine
from gtpo.rollout.settings import RolloutLimits, Sampling

__all__ = [
    "FORMATS",
    "ChatEncoder",
    "FencedFormat",
    "RolloutBatch",
    "RolloutEngine",
    "RolloutLimits",
    "Sampling",
    "ToolCallFormat",
    "ToolFormat",
    "get_format",
    "system_prompt_for",
]
