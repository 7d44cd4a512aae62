"""From finished rollouts to turn rewards, returns and advantages: where `gtpo.functional` meets trajectories.

No training framework here. A rollout is reduced to `RolloutFacts`, a small picklable record, so that a group
spread over several processes can be gathered and every process computes the same credit.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gtpo import functional as F
from gtpo.errors import ConfigError
from gtpo.functional.advantages import SCOPES, UNIFORM_OUTCOMES
from gtpo.similarity import CodeSimilarity
from gtpo.types import StopReason, Trajectory

ALGORITHMS = ("gtpo", "grpo")


@dataclass(frozen=True)
class CreditSettings:
    """The numbers of the algorithm; see SPEC sections 1 to 3.

    Attributes:
        gamma: discount of later turns' rewards, in [0, 1]. The paper's: 0.9.
        alpha: weight of the shaped reward of failed rollouts, in [0, 1]. The paper's: 0.5; 0 turns shaping off.
        format_penalty: reward of a turn with an invalid call, at most 0. The paper's: -0.1.
        scope: set over which returns are normalised: pooled, initial or turn.
        on_uniform_outcome: keep or zero the advantages of groups that all passed or all failed.
        penalize_syntax_errors: whether code that does not parse as Python counts as an invalid call.
    """

    gamma: float = 0.9
    alpha: float = 0.5
    format_penalty: float = -0.1
    scope: str = "pooled"
    on_uniform_outcome: str = "keep"
    penalize_syntax_errors: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"gamma must be in [0, 1], got {self.gamma}")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must be in [0, 1], got {self.alpha}")
        if self.format_penalty > 0:
            raise ConfigError(f"format_penalty must be at most 0, got {self.format_penalty}")
        if self.scope not in SCOPES:
            raise ConfigError(f"scope must be one of {', '.join(SCOPES)}, got {self.scope!r}")
        if self.on_uniform_outcome not in UNIFORM_OUTCOMES:
            raise ConfigError(
                f"on_uniform_outcome must be one of {', '.join(UNIFORM_OUTCOMES)}, got {self.on_uniform_outcome!r}"
            )


@dataclass(frozen=True)
class RolloutFacts:
    """What credit needs to know of a rollout.

    Attributes:
        group_id: rollouts of one prompt share it.
        passed: whether the final answer was verified.
        invalid_turns: for each turn whether it holds an invalid call.
        has_call: whether any turn makes a call, valid or not.
        code: code of all turns, concatenated in order.
        masked: the rollout is neither scored nor trained on, nor counted in its group.
    """

    group_id: int
    passed: bool
    invalid_turns: tuple[bool, ...]
    has_call: bool
    code: str
    masked: bool = False


def rollout_facts(
    trajectory: Trajectory,
    *,
    passed: bool,
    group_id: int,
    penalize_syntax_errors: bool = False,
    dropped: bool = False,
) -> RolloutFacts:
    """Reduce a trajectory to what credit needs. One whose sandbox failed, or that is `dropped`, is masked."""
    return RolloutFacts(
        group_id=group_id,
        passed=passed,
        invalid_turns=tuple(
            bool(turn.invalid_calls)
            or (penalize_syntax_errors and any(not _parses(call.code) for call in turn.valid_calls))
            for turn in trajectory.turns
        ),
        has_call=trajectory.num_calls > 0,
        code=trajectory.code,
        masked=dropped or trajectory.stop_reason is StopReason.INFRA,
    )


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


@dataclass(frozen=True)
class Credit:
    """Rewards, returns and advantages of a batch: float32, on the CPU, 0 for masked rollouts and past the last turn.

    Attributes:
        accuracy_B: 1 for rollouts that passed, else 0.
        shaped_B: the shaped accuracy of failed rollouts, in [0, alpha].
        format_B_K: the format penalties.
        rewards_B_K: the turn rewards. GRPO: its one reward, at the last turn.
        returns_B_K: discounted returns. GRPO: the one reward at each turn.
        advantages_B_K: normalised over the group. GRPO: the same at each turn.
        outcome_B: the one reward a rollout of the paper's GRPO baseline: min(accuracy, format).
        group_B: int64, the rollouts' groups.
        shaping_s: seconds spent on similarities.
    """

    accuracy_B: Tensor
    shaped_B: Tensor
    format_B_K: Tensor
    rewards_B_K: Tensor
    returns_B_K: Tensor
    advantages_B_K: Tensor
    outcome_B: Tensor
    group_B: Tensor
    shaping_s: float


def assign_credit(
    facts: Sequence[RolloutFacts],
    similarity: CodeSimilarity,
    settings: CreditSettings,
    *,
    algorithm: str = "gtpo",
    eps: float = 1e-4,
) -> Credit:
    """Compute the credit of every turn of a batch of whole groups.

    Args:
        facts: the rollouts of all groups, in any order; at least one.
        similarity: of codes; only failed rollouts of groups with a success are compared.
        settings: the numbers of the algorithm.
        algorithm: "gtpo", or "grpo" for the paper's baseline: one reward a rollout, the same advantage at each turn.
        eps: added to the deviation.

    Raises:
        ConfigError: unknown algorithm.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    num_turns_B = torch.tensor([len(fact.invalid_turns) for fact in facts])
    turn_B_K = torch.arange(int(num_turns_B.max())).expand(len(facts), -1)
    turn_B_K = torch.where(turn_B_K < num_turns_B[:, None], turn_B_K, -1)
    kept_B = torch.tensor([not fact.masked for fact in facts])
    group_B = torch.tensor([fact.group_id for fact in facts])
    if not kept_B.any():
        return _no_credit(group_B, turn_B_K.shape[1])
    kept_facts = [fact for fact in facts if not fact.masked]
    assign = _gtpo if algorithm == "gtpo" else _grpo
    kept = assign(kept_facts, num_turns_B[kept_B], turn_B_K[kept_B], similarity, settings, eps)

    def whole(value: Tensor) -> Tensor:
        return value.new_zeros(len(facts), *value.shape[1:]).index_put((kept_B,), value)

    return Credit(
        accuracy_B=whole(kept.accuracy_B),
        shaped_B=whole(kept.shaped_B),
        format_B_K=whole(kept.format_B_K),
        rewards_B_K=whole(kept.rewards_B_K),
        returns_B_K=whole(kept.returns_B_K),
        advantages_B_K=whole(kept.advantages_B_K),
        outcome_B=whole(kept.outcome_B),
        group_B=group_B,
        shaping_s=kept.shaping_s,
    )


def _no_credit(group_B: Tensor, num_k: int) -> Credit:
    zeros_B, zeros_B_K = torch.zeros(len(group_B)), torch.zeros(len(group_B), num_k)
    return Credit(
        accuracy_B=zeros_B,
        shaped_B=zeros_B,
        format_B_K=zeros_B_K,
        rewards_B_K=zeros_B_K,
        returns_B_K=zeros_B_K,
        advantages_B_K=zeros_B_K,
        outcome_B=zeros_B,
        group_B=group_B,
        shaping_s=0.0,
    )


def _inputs(facts: Sequence[RolloutFacts], num_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Passed, invalid turns, whether a call was made, and groups, as tensors."""
    invalid_B_K = torch.zeros(len(facts), num_k, dtype=torch.bool)
    for row, fact in enumerate(facts):
        invalid_B_K[row, : len(fact.invalid_turns)] = torch.tensor(fact.invalid_turns)
    passed_B = torch.tensor([fact.passed for fact in facts])
    has_call_B = torch.tensor([fact.has_call for fact in facts])
    return passed_B, invalid_B_K, has_call_B, torch.tensor([fact.group_id for fact in facts])


def _outcome(passed_B: Tensor, invalid_B_K: Tensor, has_call_B: Tensor, num_turns_B: Tensor) -> Tensor:
    """GRPO's one reward: 1 if the answer is right and no turn would be penalised."""
    nothing_B = torch.zeros_like(passed_B)
    penalties_B_K = F.turn_rewards(nothing_B, num_turns_B, invalid_B_K, has_call_B, format_penalty=-1.0)
    return F.grpo_rewards(passed_B, penalties_B_K.eq(0).all(dim=1)).float()


def _gtpo(
    facts: Sequence[RolloutFacts],
    num_turns_B: Tensor,
    turn_B_K: Tensor,
    similarity: CodeSimilarity,
    settings: CreditSettings,
    eps: float,
) -> Credit:
    passed_B, invalid_B_K, has_call_B, group_B = _inputs(facts, turn_B_K.shape[1])
    start = time.perf_counter()
    shaped_B = _shaped(facts, similarity, settings.alpha) if settings.alpha > 0 else torch.zeros(len(facts))
    shaping_s = time.perf_counter() - start
    penalty = settings.format_penalty
    nothing_B = torch.zeros_like(passed_B)
    format_B_K = F.turn_rewards(nothing_B, num_turns_B, invalid_B_K, has_call_B, format_penalty=penalty)
    rewards_B_K = F.turn_rewards(
        passed_B, num_turns_B, invalid_B_K, has_call_B, format_penalty=penalty, shaped_B=shaped_B
    )
    advantages_B_K = F.gtpo_advantages(  # each turn as one token
        rewards_B_K,
        num_turns_B,
        turn_B_K,
        group_B,
        gamma=settings.gamma,
        scope=settings.scope,
        eps=eps,
        passed_B=passed_B,
        on_uniform_outcome=settings.on_uniform_outcome,
    )
    return Credit(
        accuracy_B=passed_B.float(),
        shaped_B=shaped_B,
        format_B_K=format_B_K,
        rewards_B_K=rewards_B_K,
        returns_B_K=F.discounted_returns(rewards_B_K, num_turns_B, gamma=settings.gamma),
        advantages_B_K=advantages_B_K,
        outcome_B=_outcome(passed_B, invalid_B_K, has_call_B, num_turns_B),
        group_B=group_B,
        shaping_s=shaping_s,
    )


def _grpo(
    facts: Sequence[RolloutFacts],
    num_turns_B: Tensor,
    turn_B_K: Tensor,
    similarity: CodeSimilarity,
    settings: CreditSettings,
    eps: float,
) -> Credit:
    passed_B, invalid_B_K, has_call_B, group_B = _inputs(facts, turn_B_K.shape[1])
    outcome_B = _outcome(passed_B, invalid_B_K, has_call_B, num_turns_B)
    alive_B_K = turn_B_K.ge(0).float()
    last_B_K = turn_B_K.eq(num_turns_B[:, None] - 1).float()
    return Credit(
        accuracy_B=passed_B.float(),
        shaped_B=torch.zeros(len(facts)),
        format_B_K=torch.zeros(turn_B_K.shape),
        rewards_B_K=outcome_B[:, None] * last_B_K,
        returns_B_K=outcome_B[:, None] * alive_B_K,
        advantages_B_K=F.grpo_advantages(outcome_B, group_B, eps=eps)[:, None] * alive_B_K,
        outcome_B=outcome_B,
        group_B=group_B,
        shaping_s=0.0,
    )


def _shaped(facts: Sequence[RolloutFacts], similarity: CodeSimilarity, alpha: float) -> Tensor:
    """Shaped accuracy, group by group; groups that need none are not compared."""
    shaped_B = torch.zeros(len(facts))
    groups: dict[int, list[int]] = {}
    for i, fact in enumerate(facts):
        groups.setdefault(fact.group_id, []).append(i)
    for members in groups.values():
        passed_G = torch.tensor([facts[i].passed for i in members])
        has_code_G = torch.tensor([bool(facts[i].code.strip()) for i in members])
        if passed_G.any() and (~passed_G & has_code_G).any():
            similarity_G_G = similarity.matrix([facts[i].code for i in members])
            shaped_B[members] = F.shaped_accuracy(similarity_G_G, passed_G, has_code_G, alpha=alpha).float()
    return shaped_B


def credit_metrics(facts: Sequence[RolloutFacts], credit: Credit) -> dict[str, float]:
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
        "pass_rate": credit.accuracy_B.sum().item() / count,
        "reward/shaped": credit.shaped_B.sum().item() / count,
        "reward/format": credit.format_B_K.sum().item() / count,
        "reward/total": credit.rewards_B_K.sum().item() / count,
        "groups/frac_all_passed": sum(all(group) for group in groups.values()) / max(len(groups), 1),
        "groups/frac_all_failed": sum(not any(group) for group in groups.values()) / max(len(groups), 1),
        "advantage/frac_negative_on_success": sum(signs) / max(len(signs), 1),
        "rollouts/frac_masked": 1 - len(kept) / max(len(facts), 1),
    }
