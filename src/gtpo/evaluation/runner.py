"""Evaluate a model on problems: roll out, verify rollouts as they end, write each sample at once, compute figures.

A sample's random numbers depend only on the seed, the index of its problem and its own number. So a killed evaluation
continues with the missing samples and gets the same result, provided that the backend's results do not depend on what
else is in the batch (true for `TransformersBackend` on a CPU; vLLM does not guarantee it).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gtpo._async import run_async
from gtpo.errors import SandboxError, VerifierError
from gtpo.evaluation.journal import Journal
from gtpo.evaluation.result import EvalProtocol, EvalResult, Figures, figures_of
from gtpo.reward_functions import columns_of
from gtpo.rollout import RolloutEngine
from gtpo.rollout.backends.base import Backend
from gtpo.scoring import Scored, Scorer
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verifier
from gtpo.types import Trajectory, Turn

Progress = Callable[[int, int, int], None]
"""Called as progress(done, of, passed) each time a sample is scored."""


def evaluate(
    problems: Sequence[Problem],
    engine: RolloutEngine,
    backend: Backend,
    scorer: Scorer | Verifier,
    protocol: EvalProtocol,
    *,
    about: Mapping[str, Any] | None = None,
    max_concurrency: int | None = None,
    journal: Path | None = None,
    progress: Progress | None = None,
    keep_trajectories: bool = False,
) -> EvalResult:
    """Roll out each problem `protocol.samples` times and score the rollouts.

    Args:
        problems: at least one problem; ids must differ.
        engine: generates rollouts, with the prompts, tools, limits and sampling that the protocol states.
        backend: generates tokens.
        scorer: scores rollouts; a verifier stands for a scorer that uses only its verdicts.
        protocol: the number of samples per problem, and how they are sampled.
        about: the model and problems; stored in the result.
        max_concurrency: number of concurrent rollouts; None: as many as the backend takes.
        journal: file for the samples until all are done. If it holds samples of the same evaluation, only the others
            are generated. Delete it once the result is written.
        progress: called for each scored sample.
        keep_trajectories: whether the result holds the rollouts themselves, with their tokens.

    Raises:
        RewardError: a reward function returned something that is not a reward.
        VerifierError: the verifier failed.
        BackendError: the model is unavailable. Verified samples are in the journal.
        SandboxError: the sandbox failed twice for some samples; the others are in the journal.
        ConfigError: the journal belongs to another evaluation.
    """
    scorer = scorer if isinstance(scorer, Scorer) else Scorer(scorer)
    scorer.check_functions()
    evaluation = _Evaluation(problems, engine, backend, scorer, protocol, dict(about or {}), max_concurrency, progress)
    evaluation.trajectories = {} if keep_trajectories else None
    return run_async(evaluation.run(journal))


@dataclass
class _Evaluation:
    """One evaluation in progress."""

    problems: Sequence[Problem]
    engine: RolloutEngine
    backend: Backend
    scorer: Scorer
    protocol: EvalProtocol
    about: dict[str, Any]
    max_concurrency: int | None
    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=lambda: {"generation": 0.0, "tools": 0.0})
    trajectories: dict[int, Trajectory] | None = None

    @property
    def total(self) -> int:
        """Total number of samples."""
        return len(self.problems) * self.protocol.samples

    async def run(self, path: Path | None) -> EvalResult:
        """Run to the end, or until an error stops it."""
        start = time.perf_counter()
        journal = Journal(path, {"protocol": asdict(self.protocol), **self.about})
        try:
            for _ in range(2):  # what a failing sandbox left out gets a second chance
                if missing := [n for n in range(self.total) if n not in journal.samples]:
                    await self._roll_out(missing, journal)
            if missing := [n for n in range(self.total) if n not in journal.samples]:
                raise SandboxError(
                    f"a tool or environment failed twice for {len(missing)} of {self.total} samples"
                    + (f"; the others are in {path}, and the same command continues from there" if path else "")
                )
            samples = [journal.samples[n] for n in range(self.total)]
            await asyncio.to_thread(self._count_votes, samples)
        finally:
            journal.close()
        wall = time.perf_counter() - start
        kept = self.trajectories
        other = max(0.0, wall - sum(self.seconds.values()))
        return EvalResult(
            figures=figures_of(samples, self.protocol.samples),
            domains=self._by("domain", samples),
            sources=self._by("source", samples),
            seconds={"wall": wall, **self.seconds, "other": other},
            protocol=self.protocol,
            about=self.about,
            samples=samples,
            rollouts=None if kept is None else tuple(kept.get(number) for number in range(self.total)),
        )

    @cached_property
    def _further(self) -> list[str]:
        """Names of the further fields of all problems."""
        return list(dict.fromkeys(name for problem in self.problems for name in problem.extras))

    def _problem(self, number: int) -> Problem:
        return self.problems[number // self.protocol.samples]

    async def _roll_out(self, numbers: Sequence[int], journal: Journal) -> None:
        """Generate samples and verify each as it ends, while the others are generated."""
        ended: asyncio.Queue[tuple[int, Trajectory] | None] = asyncio.Queue()
        verifying = asyncio.create_task(self._verify(ended, journal))
        rolling = asyncio.create_task(
            self.engine.run_async(
                [self.engine.prompts.messages(self._problem(number)) for number in numbers],
                self.backend,
                seed=self.protocol.seed,
                rollout_ids=numbers,
                columns=[self._problem(number).columns for number in numbers],
                max_concurrency=self.max_concurrency,
                on_rollout_end=lambda number, trajectory: ended.put_nowait((number, trajectory)),
            )
        )
        rolling.add_done_callback(lambda _: ended.put_nowait(None))
        try:
            batch, _ = await asyncio.gather(rolling, asyncio.shield(verifying))
        finally:  # whatever stops it, rollouts that have ended are verified and kept
            rolling.cancel()
            await asyncio.gather(rolling, verifying, return_exceptions=True)
        self.seconds["generation"] += batch.generation_s
        self.seconds["tools"] += batch.tools_s

    async def _verify(self, ended: asyncio.Queue[tuple[int, Trajectory] | None], journal: Journal) -> None:
        last = False
        while not last:
            items = [await ended.get()]
            while not ended.empty():
                items.append(ended.get_nowait())
            last = None in items
            whole = dict(item for item in items if item and not item[1].stop_reason.is_failure)
            if not whole:
                continue
            await asyncio.to_thread(self._score, whole, journal)
            if self.progress:
                self.progress(len(journal.samples), self.total, journal.passed)

    def _score(self, trajectories: Mapping[int, Trajectory], journal: Journal) -> None:
        """Score rollouts, given by number, and write them to the journal."""
        problems = [self._problem(number) for number in trajectories]
        rows = [{**problem.fields, "extras": dict(problem.extras)} for problem in problems]
        rollouts = list(trajectories.values())
        put = map(self.engine.prompts.messages, problems)
        found = self.scorer.score(
            rollouts,
            problems,
            prompts=[rollout.asked(prompt) for rollout, prompt in zip(rollouts, put, strict=True)],
            columns=columns_of(rows, self._further),
        )
        for (number, trajectory), problem, scored in zip(trajectories.items(), problems, found, strict=True):
            if scored.failure is None:
                journal.add(number, sample_record(problem, number % self.protocol.samples, trajectory, scored))
                if self.trajectories is not None:
                    self.trajectories[number] = trajectory
        if broken := next((scored.failure for scored in found if scored.failure), None):
            raise VerifierError(broken.note)

    def _count_votes(self, samples: Sequence[dict[str, Any]]) -> None:
        """Number the classes of the samples' answers: 0 for those that pass, then the others by equivalence."""
        for sample in samples:
            sample["vote"] = None
        verifier = self.scorer.verifier
        if self.protocol.samples == 1:
            return
        if verifier is None or not self.scorer.by_verdict:  # answers of one class need not pass together
            for sample in samples:
                sample["vote"] = "unknown"
            return
        for i, problem in enumerate(self.problems):
            group = samples[i * self.protocol.samples : (i + 1) * self.protocol.samples]
            wrong = [sample for sample in group if not sample["passed"] and sample["extracted"] is not None]
            classes = verifier.classes([sample["extracted"] for sample in wrong], problem)
            for sample in group if classes is None else ():
                sample["vote"] = "unknown"
            for sample in group if classes is not None else ():
                sample["vote"] = 0 if sample["passed"] else None
            for sample, number in zip(wrong, classes or (), strict=False):
                sample["vote"] = 1 + number

    def _by(self, key: str, samples: Sequence[dict[str, Any]]) -> dict[str, Figures]:
        parts: dict[str, list[dict[str, Any]]] = {}
        for sample in samples:
            parts.setdefault(sample[key], []).append(sample)
        return {name: figures_of(part, self.protocol.samples) for name, part in sorted(parts.items())}


def sample_record(problem: Problem, number: int, trajectory: Trajectory, scored: Scored) -> dict[str, Any]:
    """The record of a sample in the result file."""
    verdict = scored.verdict
    return {
        "problem_id": problem.id,
        "sample": number,
        "domain": problem.domain,
        "source": str(problem.extras.get("from", "")),
        "prompt": trajectory.asked(problem.prompt(None)),
        **({"prompt_suffix": trajectory.prompt_suffix} if trajectory.prompt_suffix else {}),
        "answer": problem.answer,
        "passed": scored.passed,
        "score": verdict.score,
        "reward": scored.reward,
        "rewards": dict(scored.parts),
        "turn_rewards": {name: list(values) for name, values in scored.turn_rewards.items()},
        "verdict": verdict.reason,
        "extracted": verdict.extracted,
        "stop_reason": trajectory.stop_reason.value,
        "calls": trajectory.num_calls,
        "invalid_calls": trajectory.num_invalid_calls,
        "sampled_tokens": sum(len(turn.token_ids) for turn in trajectory.turns),
        "observed_tokens": len(trajectory.completion_ids) - sum(len(turn.token_ids) for turn in trajectory.turns),
        "turns": [_turn_record(turn) for turn in trajectory.turns],
        "token_exact": trajectory.token_exact,
    }


def _turn_record(turn: Turn) -> dict[str, Any]:
    seen = turn.observation
    return {
        "text": turn.text,
        "results": list(seen.results) if seen else [],
        "statuses": list(seen.statuses) if seen else [],
        **({"role": seen.role} if seen and seen.role != "tool" else {}),
    }
