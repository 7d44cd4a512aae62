"""Evaluate a model on problems: roll out, verify, count, and write down under which protocol.

The unit of the interval is the problem: samples of one problem are not independent.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gtpo.rollout import RolloutEngine, RolloutLimits, Sampling, ToolState
from gtpo.rollout.backends.base import Backend
from gtpo.rollout.loop import Progress, messages_for
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict, Verifier
from gtpo.types import Trajectory
from gtpo.versions import installed_versions


@dataclass(frozen=True)
class EvalProtocol:
    """Everything that decides a pass rate, besides model and problems.

    Attributes:
        tool_format: name of the tool-call syntax.
        system_prompt: as the model saw it; None if there was none.
        samples: rollouts a problem.
        sampling: the sampling distribution.
        limits: where a rollout ended at the latest.
        seed: of the sampling.
        tool_state: what a call left for the next one of its rollout.
    """

    tool_format: str
    system_prompt: str | None
    samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    limits: RolloutLimits = field(default_factory=RolloutLimits)
    seed: int = 0
    tool_state: ToolState = "stateless"


@dataclass(frozen=True)
class EvalResult:
    """Pass rate with its 95 % interval, counts a rollout, and every sample.

    Attributes:
        pass_rate: mean over problems of the share of their samples that passed.
        interval: 95 %, normal approximation with the problem as the unit, clipped to [0, 1].
        problems: number of problems.
        turns_per_rollout, calls_per_rollout, invalid_calls_per_rollout: means.
        stop_reasons: share of rollouts by stop reason.
        wall_s: seconds in all.
        protocol: how it was done.
        samples: one record a rollout, in the order of the problems.
    """

    pass_rate: float
    interval: tuple[float, float]
    problems: int
    turns_per_rollout: float
    calls_per_rollout: float
    invalid_calls_per_rollout: float
    stop_reasons: dict[str, float]
    wall_s: float
    protocol: EvalProtocol
    samples: list[dict[str, Any]]

    def summary(self) -> dict[str, Any]:
        """The figures without the samples."""
        figures = asdict(self)
        del figures["samples"], figures["protocol"]
        return figures

    def save(self, path: str | Path, **about: Any) -> None:
        """Write everything as one JSON file; `about` says which model and problems."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {**about, "versions": installed_versions(), **asdict(self)}
        path.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")


def save_traces(result: EvalResult, path: str | Path) -> int:
    """Write the rollouts that passed as cold-start traces, JSON Lines as `gtpo cold-start` takes them.

    Rollouts with an invalid call are left out.

    Returns:
        How many were written.
    """
    traces = [
        {"id": sample["problem_id"], "style": "rollout", "messages": _messages(sample)}
        for sample in result.samples
        if sample["passed"] and not sample["invalid_calls"]
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(trace) + "\n" for trace in traces), encoding="utf-8")
    return len(traces)


def _messages(sample: dict[str, Any]) -> list[dict[str, Any]]:
    messages = messages_for(sample["question"], None)
    for turn in sample["turns"]:
        messages.append({"role": "assistant", "content": turn["text"]})
        messages += [{"role": "tool", "content": result} for result in turn["results"]]
    return messages


def evaluate(
    problems: Sequence[Problem],
    engine: RolloutEngine,
    backend: Backend,
    verifier: Verifier,
    protocol: EvalProtocol,
    *,
    progress: Progress | None = None,
    rescue: Path | None = None,
) -> EvalResult:
    """Roll out each problem `protocol.samples` times and verify the answers.

    Args:
        problems: at least one.
        engine: with the format and limits that the protocol states.
        backend: generates.
        verifier: checks the final answers.
        protocol: how many samples, how they are drawn.
        progress: told about finished rollouts.
        rescue: where finished rollouts are written if the others can't be finished.

    Raises:
        BackendError: the model can't be had any more.
    """
    start = time.perf_counter()
    repeated = [problem for problem in problems for _ in range(protocol.samples)]
    prompts = [messages_for(problem.question, protocol.system_prompt) for problem in repeated]
    batch = engine.run(
        prompts, backend, sampling=protocol.sampling, seed=protocol.seed, progress=progress, rescue=rescue
    )
    trajectories = batch.trajectories
    verdicts = verifier.verify_many([t.answer_text for t in trajectories], repeated)
    passed = [verdict.passed for verdict in verdicts]
    rates = [fmean(passed[i : i + protocol.samples]) for i in range(0, len(passed), protocol.samples)]  # one a problem
    rate = fmean(rates)
    reasons = [t.stop_reason.value for t in trajectories]
    return EvalResult(
        pass_rate=rate,
        interval=_interval(rates),
        problems=len(problems),
        turns_per_rollout=fmean(len(t.turns) for t in trajectories),
        calls_per_rollout=fmean(t.num_calls for t in trajectories),
        invalid_calls_per_rollout=fmean(t.num_invalid_calls for t in trajectories),
        stop_reasons={reason: reasons.count(reason) / len(reasons) for reason in sorted(set(reasons))},
        wall_s=time.perf_counter() - start,
        protocol=protocol,
        samples=[_sample(*item) for item in zip(repeated, trajectories, verdicts, strict=True)],
    )


def _interval(rates: Sequence[float]) -> tuple[float, float]:
    rate = fmean(rates)
    half = 1.96 * stdev(rates) / math.sqrt(len(rates)) if len(rates) > 1 else 1.0
    return max(rate - half, 0.0), min(rate + half, 1.0)


def _sample(problem: Problem, trajectory: Trajectory, verdict: Verdict) -> dict[str, Any]:
    return {
        "problem_id": problem.id,
        "question": problem.question,
        "passed": verdict.passed,
        "verdict": verdict.reason,
        "extracted": verdict.extracted,
        "answer": problem.answer,
        "stop_reason": trajectory.stop_reason.value,
        "invalid_calls": trajectory.num_invalid_calls,
        "turns": [
            {
                "text": turn.text,
                "observation": turn.observation.text if turn.observation else None,
                "results": list(turn.observation.results) if turn.observation else [],
            }
            for turn in trajectory.turns
        ],
        "tokens": sum(len(turn.token_ids) for turn in trajectory.turns),
        "exact": trajectory.exact,
    }
