"""Two evaluations of the same problems under the same protocol: is one better than the other?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from gtpo.errors import ConfigError, DataError
from gtpo.evaluation.journal import differing
from gtpo.evaluation.result import load_result
from gtpo.evaluation.statistics import Difference, paired_difference

_FREE = ("seed",)
"""Fields of a protocol that may differ, since they do not change what is measured."""


@dataclass(frozen=True)
class Comparison:
    """Paired differences of avg@n, the second result minus the first.

    Attributes:
        first, second: avg@n of each.
        overall: difference over all problems.
        domains: differences by domain, if there are several.
        reward: difference of the mean outcome reward, if rewards other than the verdict are used and every rollout has
            one.
        notes: differences that do not prevent the comparison, such as versions.
    """

    first: float
    second: float
    overall: Difference
    domains: dict[str, Difference]
    notes: list[str]
    reward: Difference | None = None


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Compare two result files of `gtpo eval`.

    Raises:
        DataError: a file is not a result, or a problem lacks some of its samples.
        ConfigError: problems or protocols differ; the message names the field that differs.
    """
    one, other = load_result(first), load_result(second)
    rates = [_rates(document) for document in (one, other)]
    if set(rates[0]) != set(rates[1]):
        only = [sorted(set(a) - set(b)) for a, b in (rates, rates[::-1])]
        raise ConfigError(
            f"{first} and {second} have different problems: {len(only[0])} are in the first only, {len(only[1])} in "
            f"the second only, such as {(only[0] + only[1])[0]!r}"
        )
    asked = [{s["problem_id"]: (s["prompt"], s["answer"]) for s in document["samples"]} for document in (one, other)]
    if changed := [name for name in asked[0] if asked[0][name] != asked[1][name]]:
        raise ConfigError(f"problems that differ in their question or answer: {len(changed)}, such as {changed[0]!r}")
    protocol, other_protocol = (_fixed(document["protocol"]) for document in (one, other))
    if different := differing(protocol, other_protocol):
        raise ConfigError(f"{first} and {second} were made under different protocols: {'; '.join(different)}")
    for path, document in ((first, one), (second, other)):
        _check_whole(document, path)
    names = list(rates[0])
    rewards = [found for document in (one, other) if (found := _mean_rewards(document))]
    domain_of = {sample["problem_id"]: sample["domain"] for sample in one["samples"]}
    domains = sorted(set(domain_of.values()))
    return Comparison(
        first=fmean(rates[0].values()),
        second=fmean(rates[1].values()),
        overall=_difference(rates, names),
        domains={
            domain: _difference(rates, [name for name in names if domain_of[name] == domain])
            for domain in (domains if len(domains) > 1 else ())
        },
        notes=[
            *differing({k: one["protocol"].get(k) for k in _FREE}, {k: other["protocol"].get(k) for k in _FREE}),
            *differing(one["versions"], other["versions"]),
        ],
        reward=_difference(rewards, names) if len(rewards) == 2 else None,
    )


def _check_whole(document: Mapping[str, Any], path: str | Path) -> None:
    """Check that each problem has all its samples, each exactly once."""
    samples = document["protocol"].get("samples")
    found: dict[str, list[int]] = {}
    for sample in document["samples"]:
        found.setdefault(sample["problem_id"], []).append(sample["sample"])
    for name, numbers in found.items():
        if sorted(numbers) != list(range(samples if isinstance(samples, int) else 0)):
            raise DataError(
                f"the problem {name!r} has the samples {sorted(numbers)[:20]} instead of {samples!r} of them, "
                "numbered from 0; create the file again with gtpo eval",
                path=path,
                field="samples",
            )


def _fixed(protocol: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {"rewards": {}, **protocol}.items() if name not in _FREE}


def _rates(document: Mapping[str, Any]) -> dict[str, float]:
    """The share of samples that passed, by problem."""
    passed: dict[str, list[bool]] = {}
    for sample in document["samples"]:
        passed.setdefault(sample["problem_id"], []).append(sample["passed"])
    return {name: fmean(values) for name, values in passed.items()}


def _mean_rewards(document: Mapping[str, Any]) -> dict[str, float] | None:
    """The mean outcome reward, by problem; None if the verdict alone scores, or if a rollout has no reward."""
    found: dict[str, list[float]] = {}
    if "reward" not in document.get("rewards", {}) or document.get("unscored"):
        return None
    for sample in document["samples"]:
        found.setdefault(sample["problem_id"], []).append(sample["reward"])
    return {name: fmean(values) for name, values in found.items()}


def _difference(rates: list[dict[str, float]], names: list[str]) -> Difference:
    return paired_difference([rates[0][name] for name in names], [rates[1][name] for name in names])
