"""One generation batch: what this process knows of its rollouts, from the model's turns to verdicts and failures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from gtpo.credit import Credit, CreditInputs, CreditSettings, compute_credit, credit_inputs
from gtpo.errors import VerifierError
from gtpo.failures import Failure, failure_of
from gtpo.similarity import CodeSimilarity, SimilarityError
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict, Verifier
from gtpo.training.config import GTPOConfig
from gtpo.training.loss_policy import LossPolicy, loss_policy_of
from gtpo.training.trl_compat import on_main
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
        verifier: checks final answers.
        similarity: of codes; asked by the main process alone.
    """

    def __init__(self, args: GTPOConfig, verifier: Verifier, similarity: CodeSimilarity) -> None:
        self.args, self.verifier, self.similarity = args, verifier, similarity
        self.settings = args.credit_settings()

    def score(
        self,
        trajectories: tuple[Trajectory, ...],
        problems: tuple[Problem, ...],
        group_size: int,
        phase: Callable[[str], None],
    ) -> Batch:
        """Verify and assign credit. All processes must call it, with equally many rollouts.

        Args:
            trajectories, problems: of this process.
            group_size: rollouts per group; groups stand side by side and may be spread over processes.
            phase: told what is being done.
        """
        start = time.perf_counter()
        phase("verifying")
        verdicts, verifier_failures = verify(self.verifier, trajectories, problems)
        own = [failure_of(t) or failure for t, failure in zip(trajectories, verifier_failures, strict=True)]
        policies: list[LossPolicy] = [
            "drop" if failure else self._policy(trajectory, problem)
            for trajectory, problem, failure in zip(trajectories, problems, own, strict=True)
        ]
        verified = time.perf_counter()
        phase("credit")
        first = PartialState().process_index * len(trajectories)
        inputs = gather_object(
            [
                credit_inputs(
                    trajectory,
                    passed=verdict.passed,
                    group_id=(first + i) // group_size,
                    penalize_syntax_errors=self.settings.penalize_syntax_errors,
                    dropped=policy == "drop",
                )
                for i, (trajectory, verdict, policy) in enumerate(zip(trajectories, verdicts, policies, strict=True))
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

    def _policy(self, trajectory: Trajectory, problem: Problem) -> LossPolicy:
        has_answer = self.verifier.has_answer(trajectory.answer_text or "", problem)
        return loss_policy_of(
            trajectory,
            has_answer=has_answer,
            no_answer=self.args.no_answer_rollouts,
            truncated=self.args.truncated_rollouts,
        )


def problem_of(row: Mapping[str, Any]) -> Problem:
    """The problem of a row of `gtpo.training.data.problem_dataset`."""
    return Problem(
        id=row["id"],
        question=row["question"],
        answer=row["answer"],
        domain=row.get("domain") or "math",
        extras=json.loads(row.get("extras") or "{}"),
    )


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
