"""`GTPOConfig`: TRL's `GRPOConfig` with the numbers of the algorithm, the rollout, the tool and the run's directory.

The help text of a field is its documentation and says whether its default is the paper's [paper], DAPO's [DAPO] or
ours. Every option of `GRPOConfig` keeps its name and meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, Optional

import torch
from trl import GRPOConfig

from gtpo import functional as F
from gtpo.credit import CreditSettings
from gtpo.errors import ConfigError
from gtpo.rollout import PromptArguments, RolloutLimits, Sampling, ToolArguments
from gtpo.training.loss_policy import LossPolicy
from gtpo.training.trl_compat import apply_defaults


@dataclass
class GTPOConfig(GRPOConfig, ToolArguments, PromptArguments):
    """Settings of a GTPO (or GRPO) run with tools."""

    run_dir: str = field(default="runs/default", metadata={"help": "Directory of the run; made if missing."})
    overwrite: bool = field(
        default=False, metadata={"help": "Delete the records and checkpoints of a run that run_dir holds already."}
    )
    algorithm: Literal["gtpo", "grpo", "dr_grpo", "rloo", "mt_grpo", "turn_loo"] = field(
        default="gtpo",
        metadata={
            "help": "gtpo; grpo, the paper's baseline with one reward a rollout; or, for comparison, dr_grpo, rloo, "
            "mt_grpo, turn_loo."
        },
    )
    gamma: float = field(default=0.9, metadata={"help": "Discount of later turns' rewards, in [0, 1]. [paper]"})
    alpha: float = field(
        default=0.5, metadata={"help": "Weight of the code similarity of failed rollouts, in [0, 1]; 0: off. [paper]"}
    )
    format_penalty: float = field(
        default=-0.1, metadata={"help": "Reward of a turn with an invalid call, at most 0. [paper]"}
    )
    preset: Literal["default", "paper"] = field(
        default="default",
        metadata={
            "help": "What normalize_over, zero_uniform_groups and advantage_clip are where they are not given: default "
            "(first_turns, true, 10: by our own evidence, docs/results.md) or paper (all_turns, false, 0: the formulas "
            "as they stand)."
        },
    )
    normalize_over: Optional[Literal["all_turns", "first_turns", "same_turn"]] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "Returns are normalised over all turns of the group, first turns, or turns of the same index. The "
            "paper does not say which; by default the preset's."
        },
    )
    zero_uniform_groups: Optional[bool] = field(  # noqa: UP045 (the argument parser reads the annotation)
        default=None,
        metadata={"help": "Groups that all passed or all failed get no advantage; by default the preset's."},
    )
    advantage_clip: Optional[float] = field(  # noqa: UP045
        default=None, metadata={"help": "Largest magnitude of an advantage; 0: no bound; by default the preset's."}
    )
    penalize_syntax_errors: bool = field(
        default=False, metadata={"help": "Count code that does not parse as Python as an invalid call."}
    )
    turn_rewards: bool = field(
        default=True, metadata={"help": "For ablations: false puts the sum of a rollout's rewards at its last turn."}
    )
    turn_returns: bool = field(
        default=True, metadata={"help": "For ablations: false gives each turn the rollout's sum of rewards."}
    )
    similarity: str = field(
        default="lexical",
        metadata={
            "help": "Code similarity: lexical, sentence-transformers:MODEL, endpoint:URL#MODEL, or random (a control)."
        },
    )
    max_turns: int = field(default=8, metadata={"help": "Model turns a rollout."})
    max_turn_tokens: int = field(default=512, metadata={"help": "Sampled tokens a turn."})
    max_completion_length: int = field(
        default=2048, metadata={"help": "Completion tokens a rollout: turns and observations."}
    )
    max_context: Optional[int] = field(  # noqa: UP045 (the argument parser reads the annotation)
        default=None, metadata={"help": "Prompt and completion tokens; by default the model's context length."}
    )
    max_observation_tokens: int = field(
        default=512, metadata={"help": "Tokens of a call's result that the model sees; the middle is cut."}
    )
    max_repeated_tokens: int = field(
        default=256,
        metadata={"help": "Repeated tokens (a block of at most 32, over and over) that end a turn; 0: never."},
    )
    rollout_batch_size: int = field(default=64, metadata={"help": "Rollouts generated at a time, a process."})
    record_every: int = field(
        default=1, metadata={"help": "Write the rollouts of every n-th step to the run's directory; 0: none."}
    )
    no_answer_rollouts: LossPolicy = field(
        default="keep",
        metadata={
            "help": "Rollouts that end without call and answer: keep, mask (out of the loss, not out of the group), "
            "or drop."
        },
    )
    truncated_rollouts: LossPolicy = field(
        default="keep", metadata={"help": "Rollouts that end at a limit or repeat themselves: keep, mask or drop."}
    )
    vllm_sync: Literal["nccl", "adapter"] = field(
        default="nccl",
        metadata={"help": "How weights reach a vLLM server: nccl (CUDA), or adapter (LoRA, through a shared folder)."},
    )
    epsilon_high: float = field(default=0.28, metadata={"help": "Upper clip range of the ratio. [DAPO]"})

    def __post_init__(self) -> None:
        apply_defaults(self)
        super().__post_init__()
        chosen = CreditSettings.paper() if self.preset == "paper" else CreditSettings()
        for name in F.PAPER:
            if getattr(self, name) is None:
                setattr(self, name, getattr(chosen, name))
        self.credit_settings()
        self.rollout_limits()
        self.sampling()
        self.tool_limits()
        self.make_prompts(self.specs())
        if self.record_every < 0:
            raise ConfigError(f"record_every must be at least 0, got {self.record_every}")
        self._check_vllm()
        if self.scale_rewards != "group" or self.multi_objective_aggregation != "sum_then_normalize":
            raise ConfigError("GTPO normalises returns over the group: leave scale_rewards at 'group'")

    def _check_vllm(self) -> None:
        if not self.use_vllm:
            return
        if self.vllm_mode == "colocate" and self.vllm_tensor_parallel_size > 1:
            raise ConfigError(
                "a colocated engine that several processes share (vllm_tensor_parallel_size above 1) needs them in "
                "step, and rollouts go each at its own pace: use --vllm_mode server"
            )
        if self.vllm_mode == "server" and self.vllm_sync == "nccl" and not torch.cuda.is_available():
            raise ConfigError(
                "weights go to a vLLM server over NCCL, which needs CUDA: use --vllm_sync adapter with --use_peft"
            )
        if self.vllm_sync == "adapter" and self.vllm_mode != "server":
            raise ConfigError("vllm_sync 'adapter' is for --vllm_mode server")

    def credit_settings(self) -> CreditSettings:
        """The numbers of the algorithm."""
        return CreditSettings(**{item.name: getattr(self, item.name) for item in fields(CreditSettings)})

    def rollout_limits(self) -> RolloutLimits:
        """Where a rollout ends at the latest."""
        return RolloutLimits(
            max_turns=self.max_turns,
            max_turn_tokens=self.max_turn_tokens,
            max_completion_length=self.max_completion_length or 2**31,
            max_context=self.max_context,
            max_observation_tokens=self.max_observation_tokens,
            max_repeated_tokens=self.max_repeated_tokens,
        )

    def sampling(self) -> Sampling:
        """The sampling distribution of rollouts."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )
