"""The result of an evaluation: the protocol, the figures, every sample. docs/evaluation.md documents the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from gtpo._files import write_text
from gtpo.errors import ConfigError, DataError
from gtpo.evaluation.journal import check_sample
from gtpo.evaluation.statistics import Estimate, Mean, maj_at_k, mean_of, mean_with_interval, pass_at_k
from gtpo.rollout import RolloutConfig, RolloutEngine
from gtpo.tasks.problems import Problem
from gtpo.types import Trajectory
from gtpo.versions import installed_versions

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class EvalProtocol:
    """Everything that affects the figures, besides the model and the problems.

    Attributes:
        samples: number of rollouts per problem.
        seed: seed of the sampling.
        system_prompts: the system prompts that the model saw, by type of answer; None if there was none.
        rollout: how rollouts were generated; see `gtpo.rollout.RolloutConfig.recorded`.
        rewards: how rollouts were scored, if not by the verdict alone; see `gtpo.scoring.RewardConfig`.
    """

    samples: int = 1
    seed: int = 0
    system_prompts: Mapping[str, str | None] = field(default_factory=dict)
    rollout: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, Any] = field(default_factory=dict)


def protocol_of(
    config: RolloutConfig,
    engine: RolloutEngine,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    seed: int = 0,
    rewards: Mapping[str, Any] | None = None,
) -> EvalProtocol:
    """The protocol of an evaluation of these problems with this engine, which was built from the configuration."""
    types = sorted(set(map(engine.prompts.answer_type, problems)))
    prompts = {name: engine.prompts.system_prompt(name) for name in types}
    return EvalProtocol(samples, seed, prompts, config.recorded(), dict(rewards or {}))


@dataclass(frozen=True)
class Figures:
    """Figures over some problems.

    Attributes:
        scores: avg@n, pass@k, maj@k (`gtpo.evaluation.statistics`), and `score`, the mean score, if a verifier gives
            more than pass and fail.
        rewards: means, if the verdict alone does not score: `reward` (the outcome reward), `reward/NAME` (the reward of
            one function, unweighted), `turn_reward/NAME` (weighted, summed over a rollout's turns).
        unscored: number of rollouts to which no reward function applies; they did not pass, and are in no mean reward.
        problems: number of problems.
        rollouts: number of rollouts.
        turns_per_rollout, calls_per_rollout, invalid_calls_per_rollout: means per rollout.
        sampled_tokens_per_rollout, observed_tokens_per_rollout: means per rollout.
        stop_reasons: share of rollouts by stop reason.
        call_statuses: share of calls by how they ended.
    """

    scores: dict[str, Estimate]
    problems: int
    rollouts: int
    turns_per_rollout: float
    calls_per_rollout: float
    invalid_calls_per_rollout: float
    sampled_tokens_per_rollout: float
    observed_tokens_per_rollout: float
    stop_reasons: dict[str, float]
    call_statuses: dict[str, float]
    rewards: dict[str, Mean] = field(default_factory=dict)
    unscored: int = 0


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation.

    Attributes:
        figures: figures over all problems.
        domains: figures by domain.
        sources: figures by source of the problems.
        seconds: `wall` (in all), `generation` (a rollout waited for the model), `tools` (rollouts waited for tools
            only) and `other`.
        protocol: how the evaluation was done.
        about: the model, problems and backend.
        samples: one record per rollout, in the order of the problems.
        rollouts: the rollouts themselves, if they were kept; None for a rollout that an earlier process generated.
    """

    figures: Figures
    domains: dict[str, Figures]
    sources: dict[str, Figures]
    seconds: dict[str, float]
    protocol: EvalProtocol
    about: dict[str, Any]
    samples: list[dict[str, Any]]
    rollouts: tuple[Trajectory | None, ...] | None = field(default=None, repr=False)

    @property
    def trajectories(self) -> list[Trajectory]:
        """The rollouts, in the order of `samples`.

        Raises:
            ConfigError: the rollouts were not kept, or an earlier process generated some of them.
        """
        found = [rollout for rollout in self.rollouts or () if rollout is not None]
        if len(found) < len(self.samples):
            raise ConfigError(
                f"{len(self.samples) - len(found)} of {len(self.samples)} rollouts are not in memory: evaluate with "
                "keep_trajectories, and without a journal of an earlier process; `samples` holds their texts"
            )
        return found

    @property
    def passed(self) -> list[bool]:
        """Whether each rollout passed, in the order of `samples`."""
        return [sample["passed"] for sample in self.samples]

    @property
    def groups(self) -> list[int]:
        """For each rollout, the index of its problem, in the order of `samples`."""
        return [place // self.protocol.samples for place in range(len(self.samples))]

    @property
    def pass_rate(self) -> float:
        """avg@n over all problems."""
        return self.figures.scores[f"avg@{self.protocol.samples}"].value

    def summary(self) -> dict[str, Any]:
        """The figures without the samples."""
        return {
            "pass_rate": self.pass_rate,
            **asdict(self.figures),
            "domains": {name: asdict(figures) for name, figures in self.domains.items()},
            "sources": {name: asdict(figures) for name, figures in self.sources.items()},
            "seconds": self.seconds,
        }

    def document(self) -> dict[str, Any]:
        """The contents of the result file."""
        return {
            "schema": SCHEMA_VERSION,
            **self.about,
            "versions": installed_versions(),
            "protocol": asdict(self.protocol),
            **self.summary(),
            "samples": self.samples,
        }

    def save(self, path: str | Path) -> None:
        """Write everything as one JSON file."""
        write_text(path, json.dumps(self.document(), indent=1, default=str) + "\n")


def load_result(path: str | Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        DataError: it is not a result file, or has another schema.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror}", path=path) from error
    except json.JSONDecodeError as error:
        said = f"not a result of `gtpo eval`: broken JSON at column {error.colno}: {error.msg}"
        raise DataError(said, path=path, line=error.lineno) from error
    except RecursionError:
        raise DataError("not a result of `gtpo eval`: JSON nested too deeply", path=path) from None
    except ValueError as error:
        raise DataError(f"not a result of `gtpo eval`: {error}", path=path) from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA_VERSION:
        found = document.get("schema") if isinstance(document, dict) else None
        raise DataError(f"not a result of `gtpo eval` of schema {SCHEMA_VERSION} (it says {found!r})", path=path)
    for name in ("protocol", "versions"):
        if not isinstance(document.get(name), dict):
            raise DataError("missing or not an object; create the file again with gtpo eval", path=path, field=name)
    if not isinstance(document.get("samples"), list) or not document["samples"]:
        raise DataError("missing or empty; create the file again with gtpo eval", path=path, field="samples")
    for place, sample in enumerate(document["samples"]):
        check_sample(sample, path, where=f"sample {place} (from 0): ")
    return document


def figures_of(samples: Sequence[Mapping[str, Any]], per_problem: int) -> Figures:
    """The figures of samples; the samples of each problem must be contiguous."""
    problems = [samples[i : i + per_problem] for i in range(0, len(samples), per_problem)]
    passed = [sum(sample["passed"] for sample in group) for group in problems]
    scores = {f"avg@{per_problem}": mean_with_interval([c / per_problem for c in passed], per_problem)}
    for k in _ks(per_problem):
        scores[f"pass@{k}"] = mean_with_interval([pass_at_k(c, per_problem, k) for c in passed], per_problem)
    voting = [group for group in problems if all(sample["vote"] != "unknown" for sample in group)]
    for k in _ks(per_problem) if voting else []:
        values = [maj_at_k([s["vote"] for s in group], [s["passed"] for s in group], k) for group in voting]
        scores[f"maj@{k}"] = mean_with_interval(values, per_problem)
    if any(sample["score"] != float(sample["passed"]) for sample in samples):
        scores["score"] = mean_with_interval([fmean(s["score"] for s in group) for group in problems], per_problem)
    statuses = [status for sample in samples for turn in sample["turns"] for status in turn["statuses"]]
    return Figures(
        scores=scores,
        problems=len(problems),
        rollouts=len(samples),
        turns_per_rollout=fmean(len(sample["turns"]) for sample in samples),
        calls_per_rollout=fmean(sample["calls"] for sample in samples),
        invalid_calls_per_rollout=fmean(sample["invalid_calls"] for sample in samples),
        sampled_tokens_per_rollout=fmean(sample["sampled_tokens"] for sample in samples),
        observed_tokens_per_rollout=fmean(sample["observed_tokens"] for sample in samples),
        stop_reasons=_shares([sample["stop_reason"] for sample in samples]),
        call_statuses=_shares(statuses),
        rewards=_mean_rewards(problems),
        unscored=sum(sample["reward"] is None for sample in samples),
    )


def _mean_rewards(problems: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Mean]:
    """Means over problems of the rewards by name; empty if the verdict alone scores."""
    found: dict[str, list[list[float | None]]] = {}
    for group in problems:
        for name in {name: None for sample in group for name in _named_rewards(sample)}:
            found.setdefault(name, []).append([_named_rewards(sample).get(name) for sample in group])
    samples = [sample for group in problems for sample in group]
    if not any(sample["rewards"] or sample["reward"] != float(sample["passed"]) for sample in samples):
        del found["reward"]
    means = {name: [fmean(given) for group in groups if (given := _there(group))] for name, groups in found.items()}
    return {name: mean_of(values) for name, values in means.items() if values}


def _named_rewards(sample: Mapping[str, Any]) -> dict[str, float | None]:
    own = {f"reward/{name}": value for name, value in sample["rewards"].items()}
    turns = {f"turn_reward/{name}": sum(values) for name, values in sample["turn_rewards"].items()}
    return {"reward": sample["reward"], **own, **turns}


def _there(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _ks(samples: int) -> list[int]:
    """2, 4, 8 and so on, and the number of samples itself."""
    powers = [2**i for i in range(1, samples.bit_length()) if 2**i < samples]
    return [*powers, samples] if samples > 1 else []


def _shares(names: Sequence[str]) -> dict[str, float]:
    return {name: names.count(name) / len(names) for name in sorted(set(names))}
