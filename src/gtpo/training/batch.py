"""One generation batch: what this process knows of its rollouts, from the model's turns to verdicts and failures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from gtpo.credit import TURN_REWARDS, Credit, CreditInputs, CreditSettings, compute_credit, credit_inputs
from gtpo.errors import ConfigError, VerifierError
from gtpo.failures import Failure, failure_of
from gtpo.similarity import CodeSimilarity, SimilarityError
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict, Verifier
from gtpo.training.config import GTPOConfig
from gtpo.training.loss_policy import LossPolicy, loss_policy_of
from gtpo.training.trl_compat import on_main
from gtpo.turn_rewards import TurnRewardFunction, environment_turn_rewards, name_of, weighted_turn_rewards
from gtpo.types import Trajectory


@dataclass(frozen=True)
class Batch:
    """The rollouts of this process, and what is known of those of all processes.

    Attributes:
        trajectories, problems, verdicts, policies: one each per rollout of this process, in the order of the prompts.
        first: place of the first of these rollouts among those of all processes.
        inputs, failures, credit: of the rollouts of all processes.
        rewards: what TRL logs, and what it computes GRPO's advantages from; None for a dropped rollout.
        verify_s, credit_s: wall seconds.
    """

    trajectories: tuple[Trajectory, ...]
    problems: tuple[Problem, ...]
    verdicts: tuple[Verdict, ...]
    policies: tuple[LossPolicy, ...]
    first: int
    inputs: tuple[CreditInputs, ...]
    failures: tuple[Failure | None, ...]
    credit: Credit
    rewards: tuple[float | None, ...]
    verify_s: float
    credit_s: float

    @property
    def masks(self) -> list[list[int]]:
        """For each completion token of each rollout whether it takes part in the loss."""
        return [
            trajectory.mask if policy == "keep" else [0] * len(trajectory.mask)
            for trajectory, policy in zip(self.trajectories, self.policies, strict=True)
        ]


class BatchScorer:
    """Gives the rollouts of a batch their verdicts, and with those of all processes their credit.

    Args:
        args: the algorithm and its settings, and what becomes of rollouts without an answer.
        verifier: checks final answers; None: reward functions alone say what a rollout is worth.
        similarity: of codes; asked by the main process alone.
        turn_reward_funcs: see `gtpo.turn_rewards`.
        environment: the name under which the turn rewards of environments are added, with weight 1; None: there are
            none.

    Raises:
        ConfigError: weights that do not fit the functions, or turn rewards under an algorithm with one reward per
            rollout.
    """

    def __init__(
        self,
        args: GTPOConfig,
        verifier: Verifier | None,
        similarity: CodeSimilarity,
        turn_reward_funcs: Sequence[TurnRewardFunction] = (),
        environment: str | None = None,
    ) -> None:
        self.args, self.verifier, self.similarity = args, verifier, similarity
        self.settings = args.credit_settings()
        self.turn_reward_funcs = list(turn_reward_funcs)
        self.turn_reward_weights = args.turn_reward_weights or [1.0] * len(self.turn_reward_funcs)
        if len(self.turn_reward_weights) != len(self.turn_reward_funcs):
            raise ConfigError(
                f"{len(self.turn_reward_weights)} turn_reward_weights for {len(self.turn_reward_funcs)} "
                "turn_reward_funcs: give one for each"
            )
        if environment is not None:
            self.turn_reward_funcs.append(environment_turn_rewards(environment))
            self.turn_reward_weights = [*self.turn_reward_weights, 1.0]
        if self.turn_reward_funcs and args.algorithm not in TURN_REWARDS:
            raise ConfigError(
                f"algorithm {args.algorithm} has one reward per rollout, so turn rewards "
                f"({', '.join(map(name_of, self.turn_reward_funcs))}) have no effect: use "
                f"{' or '.join(sorted(TURN_REWARDS))}"
            )

    def score(
        self,
        trajectories: tuple[Trajectory, ...],
        problems: tuple[Problem, ...],
        group_size: int,
        phase: Callable[[str], None],
        *,
        outcomes: Callable[[Sequence[Verdict]], Sequence[float | None]] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Batch:
        """Verify and assign credit. All processes must call it, with equally many rollouts.

        Args:
            trajectories, problems: of this process.
            group_size: rollouts per group; groups stand side by side and may be spread over processes.
            phase: told what is being done.
            outcomes: the outcome rewards of these rollouts, given their verdicts; None drops one. By default the
                verdicts' own.
            columns: of the data set, one entry per rollout, for turn rewards.

        Raises:
            RewardError: a reward function gave something that is no reward.
        """
        start = time.perf_counter()
        phase("verifying")
        verdicts, verifier_failures = self._verified(trajectories, problems)
        rewards = self._own_outcomes(verdicts) if outcomes is None else outcomes(verdicts)
        if self.verifier is None:
            verdicts = [
                Verdict(value is not None and value >= self.args.success_threshold, value or 0.0, "by reward functions")
                for value in rewards
            ]
        turn_rewards = weighted_turn_rewards(
            self.turn_reward_funcs, self.turn_reward_weights, trajectories, columns or {}
        )
        own = [failure_of(t) or failure for t, failure in zip(trajectories, verifier_failures, strict=True)]
        policies: list[LossPolicy] = [
            "drop" if failure or reward is None else self._policy(trajectory, problem)
            for trajectory, problem, failure, reward in zip(trajectories, problems, own, rewards, strict=True)
        ]
        verified = time.perf_counter()
        phase("credit")
        first = PartialState().process_index * len(trajectories)
        inputs = gather_object(
            [
                credit_inputs(
                    trajectory,
                    passed=reward is not None and reward >= self.args.success_threshold,
                    group_id=(first + i) // group_size,
                    penalize_syntax_errors=self.settings.penalize_syntax_errors,
                    dropped=policy == "drop",
                    outcome=reward,
                    turn_rewards=turn_rewards[i],
                )
                for i, (trajectory, reward, policy) in enumerate(zip(trajectories, rewards, policies, strict=True))
            ]
        )
        failures = gather_object(own)
        credit, unlike = on_main(lambda: credit_of(inputs, self.similarity, self.settings, self.args.algorithm))
        rewards_B = (credit.outcome_B if self.args.algorithm == "grpo" else credit.accuracy_B).tolist()
        policies = ["drop" if first + i in unlike else policy for i, policy in enumerate(policies)]
        return Batch(
            trajectories=trajectories,
            problems=problems,
            verdicts=tuple(verdicts),
            policies=tuple(policies),
            first=first,
            inputs=tuple(replace(item, masked=item.masked or i in unlike) for i, item in enumerate(inputs)),
            failures=tuple(unlike.get(i, failure) for i, failure in enumerate(failures)),
            credit=credit,
            rewards=tuple(None if policy == "drop" else rewards_B[first + i] for i, policy in enumerate(policies)),
            verify_s=verified - start,
            credit_s=time.perf_counter() - verified,
        )

    def _verified(
        self, trajectories: Sequence[Trajectory], problems: Sequence[Problem]
    ) -> tuple[list[Verdict], list[Failure | None]]:
        if self.verifier is None:
            return [Verdict(False, 0.0, "")] * len(trajectories), [None] * len(trajectories)
        return verify(self.verifier, trajectories, problems)

    def _own_outcomes(self, verdicts: Sequence[Verdict]) -> list[float | None]:
        return [verdict.score if self.args.graded else float(verdict.passed) for verdict in verdicts]

    def _policy(self, trajectory: Trajectory, problem: Problem) -> LossPolicy:
        text = trajectory.answer_text or ""
        has_answer = bool(text.strip()) if self.verifier is None else self.verifier.has_answer(text, problem)
        return loss_policy_of(
            trajectory,
            has_answer=has_answer,
            no_answer=self.args.no_answer_rollouts,
            truncated=self.args.truncated_rollouts,
        )


def problem_of(row: Mapping[str, Any], place: int = 0) -> Problem:
    """The problem of a row of `gtpo.training.data.problem_dataset`, or of any data set with a column `prompt`.

    Args:
        row: `prompt` (text or chat messages); `answer` may be text, a number, or a list of aliases, or be missing where
            reward functions score.
        place: names a row without an `id`.
    """
    prompt = row["prompt"]
    question = row.get("question") or (prompt if isinstance(prompt, str) else prompt[-1]["content"])
    extras = json.loads(row.get("extras") or "{}")
    answer = row.get("answer", "")
    if isinstance(answer, list | tuple):
        extras = {"aliases": [str(one) for one in answer], **extras}
        answer = answer[0] if answer else ""
    name = row.get("id")
    return Problem(
        id=str(place if name is None else name),
        question=question,
        answer="" if answer is None else str(answer),
        domain=row.get("domain") or "math",
        extras=extras,
    )


def completion_messages(trajectory: Trajectory) -> list[dict[str, str]]:
    """A rollout as TRL's reward functions get it: the messages after the prompt."""
    messages = []
    for turn in trajectory.turns:
        messages.append({"role": "assistant", "content": turn.text})
        if turn.observation:
            role = turn.observation.role
            messages += [{"role": role, "content": result} for result in turn.observation.results]
    return messages


def verify(
    verifier: Verifier, trajectories: Sequence[Trajectory], problems: Sequence[Problem]
) -> tuple[list[Verdict], list[Failure | None]]:
    """Verdicts of all rollouts, and where the verifier failed. If it fails for the batch, each is tried on its own."""
    texts = [trajectory.answer_text for trajectory in trajectories]
    try:
        return verifier.verify_many(texts, problems), [None] * len(texts)
    except VerifierError:
        pass
    verdicts: list[Verdict] = []
    failures: list[Failure | None] = []
    for text, problem in zip(texts, problems, strict=True):
        try:
            verdicts += verifier.verify_many([text], [problem])
            failures.append(None)
        except VerifierError as error:
            verdicts.append(Verdict(False, 0.0, f"the verifier failed: {error}"))
            failures.append(Failure("verifier", str(error)))
    return verdicts, failures


def credit_of(
    inputs: Sequence[CreditInputs], similarity: CodeSimilarity, settings: CreditSettings, algorithm: str
) -> tuple[Credit, dict[int, Failure]]:
    """Credit of a whole batch; where the similarity fails, the rollouts that it would have shaped are masked.

    Returns:
        The credit, and the failures by the rollouts' places.
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
