"""`GTPOConfig`: TRL's `GRPOConfig` with the settings of the algorithm, the rollouts, the tools and the run's directory.

The help text of a field is its documentation. It says whether the default is the paper's [paper] or DAPO's [DAPO];
other defaults are ours. Every option of `GRPOConfig` keeps its name and meaning, or is refused by name
(`gtpo.training.trl_options`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from trl import GRPOConfig

from gtpo import functional as F
from gtpo._options import check_numbers
from gtpo.credit_assignment import CreditSettings, default_gamma
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
            "help": "Advantage estimator: gtpo; grpo (the paper's baseline with one reward per rollout); or dr_grpo, "
            "rloo, mt_grpo and turn_loo for comparison."
        },
    )
    gamma: float | None = field(
        default=None,
        metadata={
            "help": "Discount of later turns' rewards, in [0, 1]. By default the paper's 0.9 for max_turns up to 4; "
            "above that, the value with which the first of max_turns turns of a success keeps 0.7 of its reward. With "
            "the preset paper, 0.9."
        },
    )
    first_turn_share: float | None = field(
        default=None,
        metadata={
            "help": "Choose gamma such that the first of max_turns turns keeps this share of a success's reward, in "
            "(0, 1], even if gamma is then below 0.9."
        },
    )
    alpha: float = field(
        default=0.5,
        metadata={"help": "Weight of the code-similarity reward of failed rollouts, in [0, 1]; 0: off. [paper]"},
    )
    format_penalty: float = field(
        default=-0.1,
        metadata={
            "help": "Reward added to a turn with an invalid call, and to the first turn of a rollout without any call; "
            "at most 0. [paper]"
        },
    )
    preset: Literal["default", "paper"] = field(
        default="default",
        metadata={
            "help": "Sets normalize_over, zero_uniform_groups, advantage_clip and gamma if they are not given: "
            "default (first_turns, true, 10, by max_turns; chosen by our measurements, docs/results.md) or paper "
            "(all_turns, false, 0, 0.9)."
        },
    )
    normalize_over: Literal["all_turns", "first_turns", "same_turn"] | None = field(
        default=None,
        metadata={
            "help": "Returns of a group from which the normalising mean and deviation are computed: those of all "
            "turns, first turns, or turns with the same index. The paper does not say which. By default the preset's."
        },
    )
    zero_uniform_groups: bool | None = field(
        default=None,
        metadata={
            "help": "Set the advantage to zero in groups in which all rollouts passed or all failed. By default the "
            "preset's."
        },
    )
    advantage_clip: float | None = field(
        default=None, metadata={"help": "Clip advantages to this magnitude; 0: no clipping. By default the preset's."}
    )
    penalize_syntax_errors: bool = field(
        default=False, metadata={"help": "Treat code that does not parse as Python as an invalid call."}
    )
    turn_rewards: bool = field(
        default=True,
        metadata={"help": "For ablations: false assigns the sum of a rollout's turn rewards to its last turn."},
    )
    turn_returns: bool = field(
        default=True,
        metadata={"help": "For ablations: false gives each turn the sum of the rollout's rewards as its return."},
    )
    similarity: str = field(
        default="lexical",
        metadata={
            "help": "Code similarity used for shaping: lexical, sentence-transformers:MODEL, endpoint:URL#MODEL, or "
            "random (a negative control)."
        },
    )
    save_minutes: float = field(
        default=10.0,
        metadata={
            "help": "Also save a checkpoint at the end of a step when this many minutes have passed since the last "
            "one; the newest two of these are kept. 0: save by save_steps only. With save_strategy no, none is saved."
        },
    )
    record_every: int = field(
        default=1, metadata={"help": "Record rollouts in run_dir every this many steps; 0: never."}
    )
    record_max_tokens: int = field(
        default=1_000_000,
        metadata={
            "help": "Record whole groups of a step, up to about this many completion tokens per step; 0: all groups."
        },
    )
    max_failed_fraction: float = field(
        default=0.5,
        metadata={
            "help": "A batch counts as lost if more than this fraction of its rollouts failed (tool, verifier, server, "
            "...), in [0, 1]."
        },
    )
    max_failed_batches: int = field(
        default=1,
        metadata={"help": "End the run, with a checkpoint, after this many lost batches in a row; at least 1."},
    )
    no_answer_rollouts: LossPolicy = field(
        default="keep",
        metadata={
            "help": "What to do with rollouts that end with neither a call nor an answer: keep, mask (exclude from the "
            "loss but not from the group), or drop (exclude from both)."
        },
    )
    truncated_rollouts: LossPolicy = field(
        default="keep",
        metadata={
            "help": "What to do with rollouts that end at a limit or in repetition: keep, mask or drop, as above."
        },
    )
    vllm_sync: Literal["nccl", "adapter"] = field(
        default="nccl",
        metadata={
            "help": "How weights are sent to a vLLM server: nccl (needs CUDA), or adapter (LoRA adapters through a "
            "shared folder)."
        },
    )
    overlap: int | None = field(
        default=None,
        metadata={
            "help": "Number of batches whose rollouts are generated while the trainer updates; 0: none. By default 1 "
            "with a vLLM server and vllm_importance_sampling_correction, else 0. Generation needs separate hardware."
        },
    )
    max_staleness: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of optimiser steps between the weights that a rollout was sampled from and the "
            "update that uses it. Older rollouts are masked and counted as stale; an overlap that always exceeds the "
            "limit is refused. By default no limit."
        },
    )
    min_groups: float = field(
        default=1.0,
        metadata={
            "help": "With overlap: fraction of a batch's groups that must be complete before its update starts, in (0, "
            "1]. Late groups are trained on with the next batch, and early groups of that batch take their places."
        },
    )
    resample_uniform: int = field(
        default=0,
        metadata={
            "help": "Replace groups whose rollouts all have the same reward by groups of other problems, drawing at "
            "most this many times the batch's number of problems (at least 2); 0: never replace. Reward functions are "
            "called twice. [DAPO]"
        },
    )
    logging_steps: float = field(
        default=1,
        metadata={"help": "Optimiser steps between lines of metrics.jsonl; below 1: a fraction of all steps."},
    )
    epsilon_high: float = field(default=0.28, metadata={"help": "Upper clip range of the importance ratio. [DAPO]"})

    def __post_init__(self) -> None:
        apply_defaults(self, "runs/default")
        GRPOConfig.__post_init__(self)
        RolloutConfig.__post_init__(self)
        chosen = CreditSettings.paper() if self.preset == "paper" else CreditSettings()
        for name in F.PAPER:
            if getattr(self, name) is None:
                setattr(self, name, getattr(chosen, name))
        self.gamma = self._chosen_gamma()
        self.credit_settings()
        for name in ("record_every", "record_max_tokens", "save_minutes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        check_numbers(self)
        self.check_rewards()
        FailurePolicy(self.max_failed_fraction, self.max_failed_batches)
        check_options(self)
        self._check_vllm()
        self._settle_overlap()
        self._check_groups()

    @property
    def group_size(self) -> int:
        """Rollouts per problem."""
        return self.num_generations or 1

    @property
    def groups_per_batch(self) -> int:
        """Number of problems in a generation batch, over all processes."""
        return (self.generation_batch_size or 0) // self.group_size

    def _check_groups(self) -> None:
        """Options that act on whole groups need whole groups in each process."""
        if not 0 < self.min_groups <= 1:
            raise ConfigError(f"min_groups must be in (0, 1], got {self.min_groups}")
        if self.min_groups < 1 and not self.overlap:
            raise ConfigError(
                f"min_groups {self.min_groups} needs --overlap: without it, late groups can't be trained on later"
            )
        if self.resample_uniform < 0 or self.resample_uniform == 1:
            raise ConfigError(f"resample_uniform must be 0 or at least 2, got {self.resample_uniform}")
        rows = self.per_device_train_batch_size * (self.steps_per_generation or 1)
        if (self.min_groups < 1 or self.resample_uniform) and rows % self.group_size:
            raise ConfigError(
                f"min_groups and resample_uniform need whole groups in each process: its generation batch of {rows} "
                f"rollouts (per_device_train_batch_size x steps_per_generation) must be a multiple of num_generations "
                f"{self.num_generations}"
            )

    @property
    def updates_per_batch(self) -> int:
        """Number of optimizer steps that train on one generation batch, rounded up."""
        micro_steps = (self.steps_per_generation or 1) * self.num_iterations
        return -(-micro_steps // self.gradient_accumulation_steps)

    def _settle_overlap(self) -> None:
        allowed = math.inf if self.max_staleness is None else self.max_staleness
        serves = self.use_vllm and self.vllm_mode == "server"
        if self.overlap is None:
            self.overlap = int(serves and self.vllm_importance_sampling_correction and self._oldest(1) <= allowed)
        if self.overlap < 0:
            raise ConfigError(f"overlap must be at least 0, got {self.overlap}")
        if self.overlap and not serves:
            raise ConfigError(
                f"overlap {self.overlap} needs a vLLM server, which generates while the trainer updates: use "
                "--use_vllm true --vllm_mode server, or --overlap 0"
            )
        if self.overlap and not self.vllm_importance_sampling_correction:
            raise ConfigError(
                f"overlap {self.overlap} trains on rollouts from older weights: use "
                "--vllm_importance_sampling_correction true, or --overlap 0"
            )
        if self.overlap > 1 and self.vllm_sync != "adapter":
            raise ConfigError(
                f"overlap {self.overlap}: an overlap above 1 needs --vllm_sync adapter, because nccl replaces the "
                "weights of all rollouts in progress"
            )
        if self._oldest(self.overlap) > allowed:
            raise ConfigError(
                f"max_staleness {self.max_staleness}: with overlap {self.overlap} (updates per generation batch: "
                f"{self.updates_per_batch}), rollouts get {self._oldest(self.overlap)} "
                "optimizer steps old; lower --overlap or --num_iterations"
            )

    def _oldest(self, overlap: int) -> int:
        """Optimizer steps between the weights that a rollout was sampled from and the last update that uses it."""
        return (overlap + 1) * self.updates_per_batch - 1

    def _chosen_gamma(self) -> float:
        if self.first_turn_share is None:
            if self.gamma is not None:
                return self.gamma
            return CreditSettings.gamma if self.preset == "paper" else default_gamma(self.max_turns)
        if not 0 < self.first_turn_share <= 1:
            raise ConfigError(f"first_turn_share must be in (0, 1], got {self.first_turn_share}")
        chosen = F.gamma_for_turns(self.max_turns, first_share=self.first_turn_share)
        if self.gamma not in (None, chosen):
            raise ConfigError(
                f"first_turn_share {self.first_turn_share} and max_turns {self.max_turns} make gamma {chosen:.4g}, but "
                f"gamma is {self.gamma}: give either first_turn_share or gamma"
            )
        return chosen

    def _check_vllm(self) -> None:
        if not self.use_vllm:
            return
        if self.vllm_mode == "colocate" and self.vllm_tensor_parallel_size > 1:
            raise ConfigError(
                "vllm_mode colocate does not support vllm_tensor_parallel_size above 1: processes that share an engine "
                "must run in step, but each rollout runs at its own pace; use --vllm_mode server"
            )
        if self.vllm_mode == "server" and self.vllm_sync == "nccl" and not torch.cuda.is_available():
            raise ConfigError("vllm_sync 'nccl' needs CUDA: use --vllm_sync adapter with --use_peft")
        if self.vllm_sync == "adapter" and self.vllm_mode != "server":
            raise ConfigError("vllm_sync 'adapter' needs --vllm_mode server")

    def credit_settings(self) -> CreditSettings:
        """The numbers of the algorithm."""
        return CreditSettings(**{item.name: getattr(self, item.name) for item in fields(CreditSettings)})


def check_enough_problems(num_problems: int, args: GTPOConfig) -> None:
    """Refuse fewer problems than a generation batch holds.

    Raises:
        ConfigError: there are too few; says how many there must be.
    """
    groups = args.groups_per_batch
    if num_problems < groups:
        raise ConfigError(
            f"{num_problems} training problems, but a generation batch holds {groups} (generation_batch_size "
            f"{args.generation_batch_size} / num_generations {args.num_generations}): give more problems or smaller "
            "batches"
        )
