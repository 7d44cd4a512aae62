"""From finished rollouts to turn rewards, returns and advantages: where `gtpo.functional` meets trajectories.

This module uses no training framework. A rollout is reduced to `CreditInputs`, a small picklable record, so that a
group spread over several processes can be gathered and every process computes the same credit.
"""

from __future__ import annotations

import ast
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gtpo import functional as F
from gtpo.errors import ConfigError
from gtpo.similarity import CodeSimilarity
from gtpo.types import Trajectory

ALGORITHMS = ("gtpo", "grpo", "dr_grpo", "rloo", "mt_grpo", "turn_loo")
"""`gtpo`; `grpo`, the paper's baseline; and estimators for comparison, see `gtpo.functional.estimators`."""
ROLLOUT_REWARDS = {"grpo", "dr_grpo", "rloo"}
"""Algorithms with one reward per rollout, that of the paper's baseline."""
TURN_REWARDS = set(ALGORITHMS) - ROLLOUT_REWARDS
"""Algorithms with one reward per turn."""
SHAPED = {"gtpo", "turn_loo"}
"""Algorithms that shape the reward of failed rollouts."""


@dataclass(frozen=True)
class CreditSettings:
    """The numbers of the algorithm; `docs/algorithm.md` has the formulas. The defaults are those of `gtpo.functional`.

    Attributes:
        gamma: discount of later turns' rewards, in [0, 1]. The paper's: 0.9. `gtpo train` has `default_gamma`.
        alpha: weight of the shaped reward of failed rollouts, in [0, 1]. The paper's: 0.5; 0 turns shaping off.
        format_penalty: reward of a turn with an invalid call, at most 0. The paper's: -0.1.
        normalize_over: set over which returns are normalised: all_turns, first_turns (the default, by our evidence in
            docs/results.md) or same_turn.
        zero_uniform_groups: whether groups in which all rollouts passed or all failed get no advantage (true by
            default, by our evidence in docs/results.md).
        advantage_clip: largest magnitude of an advantage, at least 0; 0: no bound. Ours.
        penalize_syntax_errors: whether code that does not parse as Python counts as an invalid call.
        turn_rewards: for ablations; False assigns the sum of a rollout's rewards to its last turn.
        turn_returns: for ablations; False gives each turn the sum of the rollout's rewards, normalised over rollouts.
            With both off, alpha 0 and no format penalty, the advantages are those of GRPO on the bare outcome.
    """

    gamma: float = 0.9
    alpha: float = 0.5
    format_penalty: float = -0.1
    normalize_over: str = "first_turns"
    zero_uniform_groups: bool = True
    advantage_clip: float = 10.0
    penalize_syntax_errors: bool = False
    turn_rewards: bool = True
    turn_returns: bool = True

    @classmethod
    def paper(cls, **changes: Any) -> CreditSettings:
        """The paper's formulas unchanged (`gtpo.functional.PAPER`), except for the given changes."""
        return cls(**{**F.PAPER, **changes})

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"gamma must be in [0, 1], got {self.gamma}")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must be in [0, 1], got {self.alpha}")
        if self.format_penalty > 0:
            raise ConfigError(f"format_penalty must be at most 0, got {self.format_penalty}")
        if self.normalize_over not in F.NORMALIZE_OVER:
            raise ConfigError(
                f"normalize_over must be one of {', '.join(F.NORMALIZE_OVER)}, got {self.normalize_over!r}"
            )
        for name in ("zero_uniform_groups", "penalize_syntax_errors", "turn_rewards", "turn_returns"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if not (math.isfinite(self.advantage_clip) and self.advantage_clip >= 0):
            raise ConfigError(f"advantage_clip must be at least 0 (0: no bound), got {self.advantage_clip}")


def default_gamma(max_turns: int) -> float:
    """The discount of `gtpo train`: the paper's 0.9, or more, so that the first of `max_turns` turns keeps 0.7.

    Source: ours [O]. At 0.9, long rollouts were unlearnt when success was rare: shaping can give a failure more than
    the first turn of a success gets (docs/results/at-their-best.md).
    """
    return max(CreditSettings.gamma, F.gamma_for_turns(max_turns))


@dataclass(frozen=True)
class CreditInputs:
    """What is needed of a rollout to compute its credit.

    Attributes:
        group_id: identifies the group; rollouts of one prompt share it.
        passed: whether the final answer was verified.
        invalid_turns: for each turn, whether it holds an invalid call.
        has_call: whether any turn makes a call, valid or not.
        code: code of all turns, concatenated in order.
        masked: whether the rollout is masked: not scored, not trained on, and not counted in its group.
        outcome: the graded outcome, any finite number; None: 1 if the rollout passed, else 0.
        turn_rewards: user-defined turn rewards by name, weighted, one number per turn.
    """

    group_id: int
    passed: bool
    invalid_turns: tuple[bool, ...]
    has_call: bool
    code: str
    masked: bool = False
    outcome: float | None = None
    turn_rewards: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)

    @property
    def own_rewards(self) -> tuple[float, ...]:
        """The sum of the user-defined rewards of each turn."""
        return tuple(map(sum, zip(*self.turn_rewards.values(), strict=True))) or (0.0,) * len(self.invalid_turns)


def credit_inputs(
    trajectory: Trajectory,
    *,
    passed: bool,
    group_id: int,
    penalize_syntax_errors: bool = False,
    dropped: bool = False,
    outcome: float | None = None,
    turn_rewards: Mapping[str, Sequence[float]] | None = None,
) -> CreditInputs:
    """Reduce a trajectory to its `CreditInputs`. A rollout that failed, or that is `dropped`, is masked."""
    return CreditInputs(
        group_id=group_id,
        passed=passed,
        invalid_turns=tuple(
            bool(turn.invalid_calls)
            or (penalize_syntax_errors and any(not _parses(call.code) for call in turn.valid_calls))
            for turn in trajectory.turns
        ),
        has_call=trajectory.num_calls > 0,
        code=trajectory.code,
        masked=dropped or trajectory.stop_reason.is_failure,
        outcome=outcome,
        turn_rewards={name: tuple(values) for name, values in (turn_rewards or {}).items()},
    )


def _parses(code: str) -> bool:
    """Whether code parses as Python, for `penalize_syntax_errors`."""
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


@dataclass(frozen=True)
class Credit:
    """Rewards, returns and advantages of a batch: float32, on the CPU, 0 for masked rollouts and past the last turn.

    Attributes:
        accuracy_B: the outcome: 1 for rollouts that passed and 0 for others, or the graded outcome.
        shaped_B: the shaped accuracy of failed rollouts, in [0, alpha].
        format_B_K: the format penalties.
        own_B_K: user-defined turn rewards, weighted and summed.
        rewards_B_K: the turn rewards. For algorithms with one reward per rollout: that reward, at the last turn.
        returns_B_K: discounted returns. For algorithms with one reward per rollout: that reward, at each turn.
        advantages_B_K: the algorithm's advantages. GRPO: the same at each turn.
        outcome_B: the one reward per rollout of the paper's GRPO baseline: min(accuracy, format).
        group_B: int64, the rollouts' groups.
        shaping_s: seconds spent on similarities.
        similarities: for each failed rollout that was shaped, by its index: the indices of the passing rollouts of its
            group, with the similarity of their code in [0, 1] (0 if they have none).
    """

    accuracy_B: Tensor
    shaped_B: Tensor
    format_B_K: Tensor
    own_B_K: Tensor
    rewards_B_K: Tensor
    returns_B_K: Tensor
    advantages_B_K: Tensor
    outcome_B: Tensor
    group_B: Tensor
    shaping_s: float
    similarities: Mapping[int, Mapping[int, float]] = field(default_factory=dict)


def compute_credit(
    facts: Sequence[CreditInputs],
    similarity: CodeSimilarity,
    settings: CreditSettings,
    *,
    algorithm: str = "gtpo",
    eps: float = 1e-4,
) -> Credit:
    """Compute the credit of every turn of a batch of whole groups.

    Args:
        facts: the rollouts of all groups, in any order; at least one.
        similarity: code similarity; only failed rollouts of groups with a success are compared.
        settings: the numbers of the algorithm.
        algorithm: one of `ALGORITHMS`. "grpo" is the paper's baseline: one reward per rollout, the same advantage at
            each turn.
        eps: added to the deviation.

    Raises:
        ConfigError: the algorithm is unknown.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    num_k = max(len(fact.invalid_turns) for fact in facts)
    group_B = torch.tensor([fact.group_id for fact in facts])
    kept_B = torch.tensor([not fact.masked for fact in facts])
    whole = {name: torch.zeros(len(facts), *(num_k,) * name.endswith("_B_K")) for name in PARTS}
    shaping_s, alike = 0.0, dict[int, dict[int, float]]()
    if kept_B.any():
        kept = [fact for fact in facts if not fact.masked]
        start = time.perf_counter()
        shapes = algorithm in SHAPED and settings.alpha > 0
        shaped_B, alike = _shaped(kept, similarity, settings.alpha) if shapes else (torch.zeros(len(kept)), {})
        shaping_s = time.perf_counter() - start
        invalid_B_K = torch.zeros(len(kept), num_k, dtype=torch.bool)
        own_B_K = torch.zeros(len(kept), num_k)
        for row, fact in enumerate(kept):
            invalid_B_K[row, : len(fact.invalid_turns)] = torch.tensor(fact.invalid_turns)
            own_B_K[row, : len(fact.invalid_turns)] = torch.tensor(fact.own_rewards)
        parts = turn_credit(
            passed_B=torch.tensor([fact.passed for fact in kept]),
            num_turns_B=torch.tensor([len(fact.invalid_turns) for fact in kept]),
            invalid_B_K=invalid_B_K,
            has_call_B=torch.tensor([fact.has_call for fact in kept]),
            group_B=group_B[kept_B],
            shaped_B=shaped_B,
            outcome_B=torch.tensor([fact.passed if fact.outcome is None else fact.outcome for fact in kept]).float(),
            own_B_K=own_B_K,
            settings=settings,
            algorithm=algorithm,
            eps=eps,
        )
        whole = {name: whole[name].index_put((kept_B,), getattr(parts, name)) for name in PARTS}
    places = [i for i, fact in enumerate(facts) if not fact.masked]
    similarities = {places[i]: {places[p]: value for p, value in row.items()} for i, row in alike.items()}
    return Credit(**whole, group_B=group_B, shaping_s=shaping_s, similarities=similarities)


PARTS = (
    "accuracy_B",
    "shaped_B",
    "format_B_K",
    "own_B_K",
    "rewards_B_K",
    "returns_B_K",
    "advantages_B_K",
    "outcome_B",
)
"""The parts of a `Credit` that are computed for each rollout or turn; records and tables hold the same parts."""


def turn_credit(
    *,
    passed_B: Tensor,
    num_turns_B: Tensor,
    invalid_B_K: Tensor,
    has_call_B: Tensor,
    group_B: Tensor,
    shaped_B: Tensor,
    settings: CreditSettings,
    outcome_B: Tensor | None = None,
    own_B_K: Tensor | None = None,
    algorithm: str = "gtpo",
    eps: float = 1e-4,
) -> Credit:
    """Compute credit from the facts of each rollout, given as tensors. Results have the dtype of `shaped_B`.

    Args:
        passed_B: bool, True iff the final answer is verified.
        num_turns_B: integer, 1..K.
        invalid_B_K: bool, turns with an invalid call.
        has_call_B: bool, False iff the rollout makes no call at all.
        group_B: integer, equal within a group.
        shaped_B: float, shaped accuracy of failed rollouts, 0 elsewhere and for algorithms that are not in `SHAPED`.
        outcome_B: float, the graded outcome; None: 1 if the rollout passed, else 0.
        own_B_K: float, user-defined turn rewards; None: none. Estimators with one reward per rollout ignore them.
        settings, algorithm, eps: see `compute_credit`.

    Raises:
        ValueError: shapes don't match, or values are outside the range that `gtpo.functional` takes.
    """
    dtype = shaped_B.dtype
    alive_B_K = torch.arange(invalid_B_K.shape[1]) < num_turns_B[:, None]
    last_B_K = torch.arange(invalid_B_K.shape[1]) == num_turns_B[:, None] - 1
    nothing_B = torch.zeros_like(passed_B)
    flaws_B_K = F.turn_rewards(nothing_B, num_turns_B, invalid_B_K, has_call_B, format_penalty=-1.0)
    accuracy_B = passed_B.to(dtype) if outcome_B is None else outcome_B.to(dtype)
    own_B_K = torch.zeros(invalid_B_K.shape, dtype=dtype) if own_B_K is None else own_B_K.to(dtype)
    one_reward_B = F.grpo_rewards(passed_B, flaws_B_K.eq(0).all(dim=1), outcome_B=accuracy_B)
    if algorithm in ROLLOUT_REWARDS:
        format_B_K = torch.zeros(invalid_B_K.shape, dtype=dtype)
        own_B_K = torch.zeros_like(own_B_K)
        rewards_B_K = one_reward_B[:, None] * last_B_K
    else:
        penalty = settings.format_penalty
        format_B_K = (flaws_B_K * -penalty).to(dtype)
        rewards_B_K = F.turn_rewards(
            passed_B,
            num_turns_B,
            invalid_B_K,
            has_call_B,
            format_penalty=penalty,
            shaped_B=shaped_B,
            outcome_B=accuracy_B,
            own_B_K=own_B_K,
        )

    def returns_of(rewards_B_K: Tensor) -> Tensor:
        if algorithm in ROLLOUT_REWARDS or not settings.turn_returns:
            return rewards_B_K.sum(dim=1, keepdim=True) * alive_B_K
        if not settings.turn_rewards:
            rewards_B_K = rewards_B_K.sum(dim=1, keepdim=True) * last_B_K
        return F.discounted_returns(rewards_B_K, num_turns_B, gamma=settings.gamma)

    returns_B_K = returns_of(rewards_B_K)
    if algorithm not in ROLLOUT_REWARDS and not settings.turn_rewards:
        rewards_B_K = rewards_B_K.sum(dim=1, keepdim=True) * last_B_K

    if algorithm == "grpo":
        advantages_B_K = F.grpo_advantages(one_reward_B, group_B, eps=eps)[:, None] * alive_B_K
    elif algorithm in ROLLOUT_REWARDS:
        estimator = F.dr_grpo_advantages if algorithm == "dr_grpo" else F.rloo_advantages
        advantages_B_K = estimator(one_reward_B, group_B)[:, None] * alive_B_K
    elif algorithm == "mt_grpo":
        advantages_B_K = F.mt_grpo_advantages(format_B_K + own_B_K, accuracy_B, num_turns_B, group_B, eps=eps)
    elif algorithm == "turn_loo":
        advantages_B_K = F.leave_one_out_advantages(returns_B_K, num_turns_B, group_B)
    else:
        advantages_B_K = F.group_advantages(
            returns_B_K,
            num_turns_B,
            group_B,
            passed_B=passed_B,
            own_returns_B_K=returns_of(own_B_K),
            normalize_over=settings.normalize_over if settings.turn_returns else "first_turns",  # one sum per rollout
            zero_uniform_groups=settings.zero_uniform_groups,
            advantage_clip=settings.advantage_clip,
            eps=eps,
        )
    return Credit(
        accuracy_B=accuracy_B,
        shaped_B=shaped_B,
        format_B_K=format_B_K,
        own_B_K=own_B_K,
        rewards_B_K=rewards_B_K,
        returns_B_K=returns_B_K,
        advantages_B_K=advantages_B_K,
        outcome_B=one_reward_B,
        group_B=group_B,
        shaping_s=0.0,
    )


def _shaped(
    facts: Sequence[CreditInputs], similarity: CodeSimilarity, alpha: float
) -> tuple[Tensor, dict[int, dict[int, float]]]:
    """Shaped accuracy, group by group, and the similarities behind it; groups that need no shaping are skipped."""
    shaped_B = torch.zeros(len(facts))
    alike: dict[int, dict[int, float]] = {}
    groups: dict[int, list[int]] = {}
    for i, fact in enumerate(facts):
        groups.setdefault(fact.group_id, []).append(i)
    for members in groups.values():
        passed_G = torch.tensor([facts[i].passed for i in members])
        has_code_G = torch.tensor([bool(facts[i].code.strip()) for i in members])
        if passed_G.any() and (~passed_G & has_code_G).any():
            similarity_G_G = similarity.matrix([facts[i].code for i in members])
            shaped_B[members] = F.shaped_accuracy(similarity_G_G, passed_G, has_code_G, alpha=alpha).float()
            used_G_G = similarity_G_G.clamp(0, 1) * has_code_G
            for row in (~passed_G & has_code_G).nonzero()[:, 0].tolist():
                passes = passed_G.nonzero()[:, 0].tolist()
                alike[members[row]] = {members[p]: float(used_G_G[row, p]) for p in passes}
    return shaped_B, alike


def credit_metrics(facts: Sequence[CreditInputs], credit: Credit) -> dict[str, float]:
    """The step's figures about credit; `docs/metrics.md` explains each."""
    groups: dict[int, list[bool]] = {}
    for fact in facts:
        if not fact.masked:
            groups.setdefault(fact.group_id, []).append(fact.passed)
    kept = [i for i, fact in enumerate(facts) if not fact.masked]
    signs = [
        value < 0
        for i in kept
        if facts[i].passed
        for value in credit.advantages_B_K[i, : len(facts[i].invalid_turns)].tolist()
    ]
    count = max(len(kept), 1)
    return {
        "pass_rate": sum(facts[i].passed for i in kept) / count,
        "reward/outcome": credit.accuracy_B.sum().item() / count,
        "reward/shaped": credit.shaped_B.sum().item() / count,
        "reward/format": credit.format_B_K.sum().item() / count,
        "reward/total": credit.rewards_B_K.sum().item() / count,
        "groups/frac_all_passed": sum(all(group) for group in groups.values()) / max(len(groups), 1),
        "groups/frac_all_failed": sum(not any(group) for group in groups.values()) / max(len(groups), 1),
        "advantage/frac_negative_on_success": sum(signs) / max(len(signs), 1),
        "rollouts/frac_masked": 1 - len(kept) / max(len(facts), 1),
        **{
            f"turn_reward/{name}": sum(sum(facts[i].turn_rewards.get(name, ())) for i in kept) / count
            for name in sorted({name for i in kept for name in facts[i].turn_rewards})
        },
    }
