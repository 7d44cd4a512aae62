"""`GTPOConfig`: TRL's `GRPOConfig` with the numbers of the algorithm, the rollout, the tool and the run's directory.

The help text of a field is its documentation and says whether its default is the paper's [paper], DAPO's [DAPO] or
ours. Every option of `GRPOConfig` keeps its name and meaning, or is refused by name (`gtpo.training.trl_options`).
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
            "help": "Estimator of advantages: gtpo; grpo, the paper's baseline with one reward per rollout; dr_grpo, "
            "rloo, mt_grpo and turn_loo to compare."
        },
    )
    gamma: float | None = field(
        default=None,
        metadata={
            "help": "Discount of later turns' rewards, in [0, 1]. By default the paper's 0.9 up to 4 turns, and for a "
            "larger max_turns so much that the first turn of the longest success keeps 0.7 of its reward; with the "
            "preset paper 0.9."
        },
    )
    first_turn_share: float | None = field(
        default=None,
        metadata={
            "help": "Chooses gamma such that the first of max_turns turns keeps this share of a success's reward, in "
            "(0, 1], also where that is below 0.9."
        },
    )
    alpha: float = field(
        default=0.5, metadata={"help": "Weight of the code similarity of failed rollouts, in [0, 1]; 0: off. [paper]"}
    )
    format_penalty: float = field(
        default=-0.1, metadata={"help": "Reward of a turn with an invalid call, at most 0. [paper]"}
    )
    preset: Literal["default", "paper"] = field(
        default="default",
        metadata={
            "help": "Sets normalize_over, zero_uniform_groups, advantage_clip and gamma where they are not given: "
            "default (first_turns, true, 10, by max_turns; chosen by our measurements, docs/results.md) or paper "
            "(all_turns, false, 0, 0.9)."
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
    save_minutes: float = field(
        default=10.0,
        metadata={
            "help": "Save a checkpoint too when so many minutes have passed since the last one, at the end of a step; "
            "of those the newest two are kept. 0: by save_steps alone. With save_strategy no, none is saved."
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
    overlap: int | None = field(
        default=None,
        metadata={
            "help": "Batches whose rollouts are made while the trainer updates; 0: none. By default 1 with a vLLM "
            "server and its importance sampling correction, else 0: generation needs hardware of its own."
        },
    )
    max_staleness: int | None = field(
        default=None,
        metadata={
            "help": "Most optimizer steps between the weights that a rollout was sampled from and the update that uses "
            "it: an overlap that always exceeds it is refused, and older rollouts are masked and counted as stale. By "
            "default no limit."
        },
    )
    min_groups: float = field(
        default=1.0,
        metadata={
            "help": "With overlap: share of a batch's groups that must be whole before its update begins, in (0, 1]; "
            "the late ones are trained on with the next batch, whose early ones take their places."
        },
    )
    resample_uniform: int = field(
        default=0,
        metadata={
            "help": "Replace groups whose rollouts all have the same reward by groups of other problems, until a batch "
            "has drawn this many times its problems, at least 2; 0: never. Reward functions are called twice. [DAPO]"
        },
    )
    logging_steps: float = field(
        default=1,
        metadata={"help": "Optimiser steps between lines of metrics.jsonl; below 1: a share of all steps. Ours."},
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
        """Problems of a generation batch of all processes."""
        return (self.generation_batch_size or 0) // self.group_size

    def _check_groups(self) -> None:
        """What is decided group by group needs whole groups in each process."""
        if not 0 < self.min_groups <= 1:
            raise ConfigError(f"min_groups must be in (0, 1], got {self.min_groups}")
        if self.min_groups < 1 and not self.overlap:
            raise ConfigError(f"min_groups {self.min_groups}: late groups can be trained on later only with --overlap")
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
        """Optimizer steps, rounded up, that train on one generation batch."""
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
                f"overlap {self.overlap}: rollouts are made while the trainer updates only on a vLLM server: use "
                "--use_vllm true --vllm_mode server, or --overlap 0"
            )
        if self.overlap and not self.vllm_importance_sampling_correction:
            raise ConfigError(
                f"overlap {self.overlap}: rollouts from older weights need --vllm_importance_sampling_correction true; "
                "or use --overlap 0"
            )
        if self.overlap > 1 and self.vllm_sync != "adapter":
            raise ConfigError(
                f"overlap {self.overlap}: above 1 it needs --vllm_sync adapter: nccl replaces the weights of all "
                "rollouts under way"
            )
        if self._oldest(self.overlap) > allowed:
            raise ConfigError(
                f"max_staleness {self.max_staleness}: with overlap {self.overlap} and {self.updates_per_batch} updates "
                f"per generation batch, rollouts get {self._oldest(self.overlap)} optimizer steps old: lower --overlap "
                "or --num_iterations"
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
                f"first_turn_share {self.first_turn_share} and max_turns {self.max_turns} make gamma {chosen:.4g}, and "
                f"gamma is {self.gamma}: give one of the two"
            )
        return chosen

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
    groups = args.groups_per_batch
    if num_problems < groups:
        raise ConfigError(
            f"{num_problems} training problems, but a generation batch holds {groups} (generation_batch_size "
            f"{args.generation_batch_size} / num_generations {args.num_generations}): give more problems or smaller "
            "batches"
        )
