"""One generation batch: the rollouts of this process, from the model's turns to verdicts and failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from gtpo.credit_assignment import (
    ROLLOUT_REWARDS,
    TURN_REWARDS,
    Credit,
    CreditInputs,
    CreditSettings,
    compute_credit,
    credit_inputs,
)
from gtpo.errors import ConfigError
from gtpo.failures import Failure, failure_of
from gtpo.scoring import Rewards, Scored, Scorer
from gtpo.similarity import CodeSimilarity, SimilarityError, get_similarity
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict
from gtpo.training.config import GTPOConfig
from gtpo.training.groups import Spread
from gtpo.training.loss_policy import LossPolicy, loss_policy_of
from gtpo.training.trl_compat import on_main
from gtpo.turn_rewards import name_of
from gtpo.types import Trajectory


@dataclass(frozen=True)
class Batch:
    """The rollouts of this process, and the credit of those of all processes.

    Attributes:
        trajectories, problems, verdicts, policies: one each per rollout of this process, in the order of the prompts.
        has_answer: for each of these rollouts, whether the last turn holds an answer, right or wrong.
        first: index of the first of these rollouts among those of all processes.
        inputs, failures, credit: for the rollouts of all processes.
        rewards: the rewards that TRL logs and computes GRPO's advantages from; None for a dropped rollout.
        verify_s, credit_s: wall seconds.
        parts: the reward of each reward function for each rollout of this process, by name; empty if the verifier alone
            scores.
    """

    trajectories: tuple[Trajectory, ...]
    problems: tuple[Problem, ...]
    verdicts: tuple[Verdict, ...]
    has_answer: tuple[bool, ...]
    policies: tuple[LossPolicy, ...]
    first: int
    inputs: tuple[CreditInputs, ...]
    failures: tuple[Failure | None, ...]
    credit: Credit
    rewards: tuple[float | None, ...]
    verify_s: float
    credit_s: float
    parts: tuple[Mapping[str, float | None], ...] = ()

    @property
    def masks(self) -> list[list[int]]:
        """For each completion token of each rollout, whether it is in the loss."""
        return [
            trajectory.mask if policy == "keep" else [0] * len(trajectory.mask)
            for trajectory, policy in zip(self.trajectories, self.policies, strict=True)
        ]


class BatchScorer:
    """Computes verdicts of the rollouts of this process, and credit from the rollouts of all processes.

    Args:
        args: the algorithm and its settings, and the treatment of rollouts without an answer.
        scorer: scores rollouts.
        similarity: code similarity; computed by the main process only.

    Raises:
        ConfigError: turn rewards are given, but the algorithm has one reward per rollout.
    """

    def __init__(self, args: GTPOConfig, scorer: Scorer, similarity: CodeSimilarity) -> None:
        self.args, self.scorer, self.similarity = args, scorer, similarity
        self.settings = args.credit_settings()
        if scorer.turn_reward_funcs and args.algorithm not in TURN_REWARDS:
            raise ConfigError(
                f"algorithm {args.algorithm} has one reward per rollout, so turn rewards "
                f"({', '.join(map(name_of, scorer.turn_reward_funcs))}) have no effect: use "
                f"{' or '.join(sorted(TURN_REWARDS))}"
            )

    def score(
        self,
        trajectories: tuple[Trajectory, ...],
        problems: tuple[Problem, ...],
        group_size: int,
        phase: Callable[[str], None],
        *,
        lost: Sequence[Failure | None] | None = None,
        rewards: Callable[[Sequence[Verdict]], Rewards] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Batch:
        """Verify and assign credit. All processes must call it, with the same number of rollouts.

        Args:
            trajectories, problems: those of this process.
            group_size: rollouts per group; groups are contiguous and may be spread over processes.
            phase: called with the name of the current phase.
            lost: for each rollout, a failure if it must not be trained on, whatever its result; by default none.
            rewards: computes the rewards of these rollouts from their verdicts; see `Scorer.score`.
            columns: columns of the data set, one entry per rollout, for turn rewards.

        Raises:
            RewardError: a reward function returned something that is not a reward.
        """
        start = time.perf_counter()
        phase("verifying")
        scored = self.scorer.score(trajectories, problems, columns=columns, rewards=rewards)
        own = [
            failure_of(t) or item.failure or reason
            for t, item, reason in zip(trajectories, scored, lost or [None] * len(scored), strict=True)
        ]
        has_answer = tuple(map(self._has_answer, trajectories, problems))
        policies: list[LossPolicy] = [
            "drop" if failure or item.reward is None else self._policy(trajectory, answered)
            for trajectory, answered, failure, item in zip(trajectories, has_answer, own, scored, strict=True)
        ]
        verified = time.perf_counter()
        phase("credit")
        first = PartialState().process_index * len(trajectories)
        inputs = gather_object(
            [
                credit_inputs(
                    trajectory,
                    passed=item.passed,
                    group_id=(first + i) // group_size,
                    penalize_syntax_errors=self.settings.penalize_syntax_errors,
                    dropped=policy == "drop",
                    outcome=item.reward,
                    turn_rewards=item.turn_rewards,
                )
                for i, (trajectory, item, policy) in enumerate(zip(trajectories, scored, policies, strict=True))
            ]
        )
        failures = gather_object(own)
        credit, unlike = on_main(lambda: credit_of(inputs, self.similarity, self.settings, self.args.algorithm))
        rewards_B = (credit.outcome_B if self.args.algorithm == "grpo" else credit.accuracy_B).tolist()
        policies = ["drop" if first + i in unlike else policy for i, policy in enumerate(policies)]
        return Batch(
            trajectories=trajectories,
            problems=problems,
            verdicts=tuple(item.verdict for item in scored),
            has_answer=has_answer,
            policies=tuple(policies),
            first=first,
            inputs=tuple(replace(item, masked=item.masked or i in unlike) for i, item in enumerate(inputs)),
            failures=tuple(unlike.get(i, failure) for i, failure in enumerate(failures)),
            credit=credit,
            rewards=tuple(None if policy == "drop" else rewards_B[first + i] for i, policy in enumerate(policies)),
            verify_s=verified - start,
            credit_s=time.perf_counter() - verified,
            parts=tuple(item.parts for item in scored),
        )

    def _has_answer(self, trajectory: Trajectory, problem: Problem) -> bool:
        text, verifier = trajectory.answer_text or "", self.scorer.verifier
        return bool(text.strip()) if verifier is None else verifier.has_answer(text, problem)

    def _policy(self, trajectory: Trajectory, has_answer: bool) -> LossPolicy:
        return loss_policy_of(
            trajectory,
            has_answer=has_answer,
            no_answer=self.args.no_answer_rollouts,
            truncated=self.args.truncated_rollouts,
        )


def spread_of(trajectories: Sequence[Trajectory], scored: Sequence[Scored], algorithm: str) -> Spread:
    """Whether the rollout reward that the algorithm uses differs within a group.

    Args:
        trajectories, scored: the rollouts of the group, and their scores.
        algorithm: see `compute_credit`.
    """
    inputs = [
        credit_inputs(trajectory, passed=item.passed, group_id=0, outcome=item.reward)
        for trajectory, item in zip(trajectories, scored, strict=True)
        if item.reward is not None and not (failure_of(trajectory) or item.failure)
    ]
    if not inputs:
        return Spread(False)
    credit = compute_credit(inputs, get_similarity("lexical"), CreditSettings(alpha=0.0), algorithm=algorithm)
    rewards_B = credit.outcome_B if algorithm in ROLLOUT_REWARDS else credit.accuracy_B
    return Spread(len(set(rewards_B.tolist())) > 1, len(inputs), sum(item.passed for item in inputs))


def credit_of(
    inputs: Sequence[CreditInputs], similarity: CodeSimilarity, settings: CreditSettings, algorithm: str
) -> tuple[Credit, dict[int, Failure]]:
    """Credit of a whole batch; if the similarity fails, the rollouts that it would have shaped are masked.

    Returns:
        The credit, and the failures by index of the rollout.
    """
    try:
        return compute_credit(inputs, similarity, settings, algorithm=algorithm), {}
    except SimilarityError as error:
        passes = {item.group_id for item in inputs if item.passed and not item.masked}
        concerned = {
            i: Failure("similarity", str(error))
            for i, item in enumerate(inputs)
            if not item.masked and not item.passed and item.code.strip() and item.group_id in passes
        }
        masked = [replace(item, masked=item.masked or i in concerned) for i, item in enumerate(inputs)]
        return compute_credit(masked, similarity, settings, algorithm=algorithm), concerned
