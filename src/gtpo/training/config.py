"""`GTPOConfig`: TRL's `GRPOConfig` with the numbers of the algorithm, the rollout, the tool and the run's directory.

The help text of a field is its documentation and says whether its default is the paper's [paper], DAPO's [DAPO] or
ours. Every option of `GRPOConfig` keeps its name and meaning, or is refused by name (`gtpo.training.trl_options`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from trl import GRPOConfig

from gtpo import functional as F
from gtpo.credit_assignment import CreditSettings
from gtpo.errors import ConfigError
from gtpo.failures import FailurePolicy
from gtpo.rollout import RolloutConfig
from gtpo.scoring import RewardConfig
from gtpo.training.loss_policy import LossPolicy
from gtpo.training.trl_compat import apply_defaults
from gtpo.training.trl_options import check_options


@dataclass
class GTPOConfig(RolloutConfig, RewardConfig, GRPOConfig):
    """Settings of a GTPO (or GRPO) run with tools."""

    run_dir: str = field(
        default="runs/default", metadata={"help": "Directory of the run; created if it does not exist."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Delete the records and checkpoints of an earlier run in run_dir."}
    )
    algorithm: Literal["gtpo", "grpo", "dr_grpo", "rloo", "mt_grpo", "turn_loo"] = field(
        default="gtpo",
        metadata={
            "help": "Estimator of advantages: gtpo; grpo, the paper's baseline with one reward per rollout; dr_grpo, "
            "rloo, mt_grpo and turn_loo to compare."
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
            "help": "Sets normalize_over, zero_uniform_groups and advantage_clip where they are not given: default "
            "(first_turns, true, 10; chosen by our measurements, docs/results.md) or paper (all_turns, false, 0)."
        },
    )
    normalize_over: Literal["all_turns", "first_turns", "same_turn"] | None = field(
        default=None,
        metadata={
            "help": "Returns over which the group's mean and deviation are taken: of all turns, first turns, or turns "
            "of the same index. The paper does not say which. By default the preset's."
        },
    )
    zero_uniform_groups: bool | None = field(
        default=None,
        metadata={
            "help": "Give groups in which all rollouts passed or all failed zero advantage; by default the preset's."
        },
    )
    advantage_clip: float | None = field(
        default=None, metadata={"help": "Largest magnitude of an advantage; 0: no limit. By default the preset's."}
    )
    penalize_syntax_errors: bool = field(
        default=False, metadata={"help": "Count code that does not parse as Python as an invalid call."}
    )
    turn_rewards: bool = field(
        default=True, metadata={"help": "For ablations: false assigns the sum of a rollout's rewards to its last turn."}
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
    record_every: int = field(
        default=1, metadata={"help": "Steps between recorded rollouts in run_dir; 0: record none."}
    )
    record_max_tokens: int = field(
        default=1_000_000,
        metadata={"help": "Record whole groups of a step up to about this many completion tokens; 0: all groups."},
    )
    max_failed_fraction: float = field(
        default=0.5,
        metadata={
            "help": "A batch counts as lost if a larger share of its rollouts failed (tool, verifier, server, ...), "
            "in [0, 1]."
        },
    )
    max_failed_batches: int = field(
        default=1,
        metadata={"help": "End the run, with a checkpoint, after this many lost batches in a row; at least 1."},
    )
    no_answer_rollouts: LossPolicy = field(
        default="keep",
        metadata={
            "help": "Rollouts that end with neither a call nor an answer: keep, mask (excluded from the loss, part of "
            "the group), or drop (excluded from both)."
        },
    )
    truncated_rollouts: LossPolicy = field(
        default="keep",
        metadata={"help": "Rollouts that end at a limit or in repetition: keep, mask or drop, as above."},
    )
    vllm_sync: Literal["nccl", "adapter"] = field(
        default="nccl",
        metadata={
            "help": "How weights are sent to a vLLM server: nccl (needs CUDA), or adapter (LoRA, through a shared "
            "folder)."
        },
    )
    epsilon_high: float = field(default=0.28, metadata={"help": "Upper clip range of the ratio. [DAPO]"})

    def __post_init__(self) -> None:
        apply_defaults(self, "runs/default")
        GRPOConfig.__post_init__(self)
        RolloutConfig.__post_init__(self)
        chosen = CreditSettings.paper() if self.preset == "paper" else CreditSettings()
        for name in F.PAPER:
            if getattr(self, name) is None:
                setattr(self, name, getattr(chosen, name))
        self.credit_settings()
        for name in ("record_every", "record_max_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        self.check_rewards()
        FailurePolicy(self.max_failed_fraction, self.max_failed_batches)
        check_options(self)
        self._check_vllm()

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


def check_enough_problems(num_problems: int, args: GTPOConfig) -> None:
    """Refuse fewer problems than a generation batch holds.

    Raises:
        ConfigError: says how many there must be.
    """
    groups = (args.generation_batch_size or 0) // (args.num_generations or 1)
    if num_problems < groups:
        raise ConfigError(
            f"{num_problems} training problems, but a generation batch holds {groups} (generation_batch_size "
            f"{args.generation_batch_size} / num_generations {args.num_generations}): give more problems or smaller "
            "batches"
        )
