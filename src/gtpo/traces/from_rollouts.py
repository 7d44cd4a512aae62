"""Cold-start traces from samples: those that passed, without duplicates, and the preferred ones of each problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gtpo.errors import ConfigError
from gtpo.rollout import Prompts
from gtpo.tasks.problems import Problem

Preference = Literal["turns", "repaired", "short"]
"""turns: more turns; repaired: a call failed and a later one succeeded; short: fewer tokens."""

_FAILED = {"error", "timeout", "memory", "crashed", "invalid"}


@dataclass(frozen=True)
class Collection:
    """Traces, and why other samples were left out."""

    traces: list[dict[str, Any]]
    left_out: Counter[str]


def traces_of(
    samples: Sequence[Mapping[str, Any]],
    problems: Sequence[Problem],
    prompts: Prompts,
    *,
    per_problem: int = 1,
    prefer: Sequence[Preference] = (),
    max_invalid_calls: int = 0,
) -> Collection:
    """Choose among an evaluation's samples.

    Args:
        samples: samples as in a result file.
        problems: the problems that they answer.
        prompts: the prompts used for the rollouts; each trace starts with its prompt.
        per_problem: maximum number of traces per problem.
        prefer: criteria for choosing among the traces of a problem, most important first; then the order of samples.
        max_invalid_calls: samples with more invalid calls are left out.

    Raises:
        ConfigError: a preference is unknown, or a number is out of range.
    """
    check_choice(per_problem=per_problem, prefer=prefer, max_invalid_calls=max_invalid_calls)
    left_out: Counter[str] = Counter()
    kept: dict[str, list[Mapping[str, Any]]] = {problem.id: [] for problem in problems}
    seen: set[Any] = set()
    for sample in samples:
        key = (sample["problem_id"], _content(sample, prompts))
        if not sample["passed"]:
            left_out["not passed"] += 1
        elif sample["invalid_calls"] > max_invalid_calls:
            left_out["invalid calls"] += 1
        elif key in seen:
            left_out["with the same code as another one of the problem"] += 1
        else:
            seen.add(key)
            kept[sample["problem_id"]].append(sample)
    traces = []
    for problem in problems:
        ranked = sorted(kept[problem.id], key=lambda sample: [_rank(sample, name) for name in prefer])
        left_out["beyond per_problem traces of the problem"] += len(ranked[per_problem:])
        traces += [_trace(sample, prompts.messages(problem)) for sample in ranked[:per_problem]]
    return Collection(traces, +left_out)


def check_choice(*, per_problem: int, prefer: Sequence[str], max_invalid_calls: int) -> None:
    """Make the checks of `traces_of` before the rollouts are generated.

    Raises:
        ConfigError: a preference is unknown, or a number is out of range.
    """
    if unknown := [name for name in prefer if name not in get_args(Preference)]:
        raise ConfigError(f"prefer: unknown {', '.join(unknown)}; known: {', '.join(get_args(Preference))}")
    if per_problem < 1 or max_invalid_calls < 0:
        raise ConfigError(
            f"per_problem must be at least 1, got {per_problem}; max_invalid_calls at least 0, got {max_invalid_calls}"
        )


def _content(sample: Mapping[str, Any], prompts: Prompts) -> tuple[str, ...]:
    """What identifies duplicate samples: the code of their calls, or else their text, ignoring whitespace."""
    texts = [turn["text"] for turn in sample["turns"]]
    codes = [call.code for text in texts for call in prompts.tool_format.parse(text) if hasattr(call, "code")]
    return tuple(" ".join(text.split()) for text in codes or texts)


def _rank(sample: Mapping[str, Any], preference: str) -> int:
    """Lower is better."""
    if preference == "turns":
        return -len(sample["turns"])
    if preference == "repaired":
        return -_repaired(sample)
    return int(sample["sampled_tokens"])


def _repaired(sample: Mapping[str, Any]) -> bool:
    """Whether a call failed and a later one did not."""
    statuses = [status for turn in sample["turns"] for status in turn["statuses"]]
    failed = [i for i, status in enumerate(statuses) if status in _FAILED]
    return bool(failed) and "ok" in statuses[failed[0] :]


def _trace(sample: Mapping[str, Any], prompt: list[dict[str, Any]]) -> dict[str, Any]:
    messages = list(prompt)
    if suffix := sample.get("prompt_suffix"):  # what an environment put behind it
        messages[-1] = {**messages[-1], "content": messages[-1]["content"] + suffix}
    for number, turn in enumerate(sample["turns"], 1):
        messages.append({"role": "assistant", "content": turn["text"]})
        if number == len(sample["turns"]):  # what ended the rollout, no turn followed
            break
        messages += [{"role": turn.get("role", "tool"), "content": result} for result in turn["results"]]
    return {"id": sample["problem_id"], "style": "rollout", "repaired": _repaired(sample), "messages": messages}
