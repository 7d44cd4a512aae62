r"""Cold-start traces from worked solutions: multi-turn conversations whose calls were really executed.

There are two styles. `one_call` computes the whole solution in one program, with one variable per step; a number that
an earlier step computed, and that the question does not mention, is replaced by that step's variable, so that the model
never has to know a value before it is computed. `turns` makes one call per step, and reads each value from the previous
observation. Both end with a turn with the answer in `\boxed{}`. A trace whose last result is not the answer is dropped.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from gtpo._async import run_async
from gtpo.rollout import ToolFormat
from gtpo.sandbox import Sandbox, Status
from gtpo.tasks.worked_solutions import WorkedSolution

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")


@dataclass(frozen=True)
class Trace:
    """A conversation and its origin.

    Attributes:
        id: the problem's id.
        style: one_call or turns.
        messages: roles user, assistant and tool (the bare result of a call).
    """

    id: str
    style: str
    messages: list[dict[str, Any]]


@dataclass(frozen=True)
class TraceSet:
    """Traces in the order of their solutions, and the number dropped for each reason."""

    traces: tuple[Trace, ...]
    dropped: Counter[str]

    def save(self, path: str | Path) -> None:
        """Write JSON Lines with `id`, `style` and `messages`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(vars(trace)) + "\n" for trace in self.traces), encoding="utf-8")


def traces_from_solutions(
    solutions: Sequence[WorkedSolution],
    sandbox: Sandbox,
    tool_format: ToolFormat,
    *,
    turns_share: float = 0.5,
    max_turns: int = 8,
    seed: int = 0,
) -> TraceSet:
    """Make one trace per solution.

    Args:
        solutions: see `gtpo.tasks.worked_solutions`.
        sandbox: runs each call for its observation.
        tool_format: syntax of the calls.
        turns_share: share of traces with one call per step, in [0, 1]; the others make one call.
        max_turns: solutions with more steps than this allows make one call.
        seed: seed for choosing the styles.
    """
    rng = random.Random(seed)
    styles = [
        "turns" if rng.random() < turns_share and len(solution.steps) < max_turns else "one_call"
        for solution in solutions
    ]
    plans = [_turns(s) if style == "turns" else _one_call(s) for s, style in zip(solutions, styles, strict=True)]
    results = iter(run_async(sandbox.run_many([code for plan in plans for _, code in plan])))
    traces: list[Trace] = []
    dropped: Counter[str] = Counter()
    for solution, style, plan in zip(solutions, styles, plans, strict=True):
        outcomes = [next(results) for _ in plan]
        if any(outcome.status is not Status.OK for outcome in outcomes):
            dropped["the code did not run"] += 1
        elif not _equal(outcomes[-1].stdout, solution.answer):
            dropped["the last result is not the answer"] += 1
        else:
            messages: list[dict[str, Any]] = [{"role": "user", "content": solution.problem.question}]
            for (text, code), outcome in zip(plan, outcomes, strict=True):
                messages.append({"role": "assistant", "content": tool_format.render_turn(text, code)})
                messages.append({"role": "tool", "content": outcome.render()})
            answer = tool_format.render_turn(f"The answer is \\boxed{{{solution.answer}}}.")
            traces.append(Trace(solution.problem.id, style, [*messages, {"role": "assistant", "content": answer}]))
    return TraceSet(tuple(traces), dropped)


def _turns(solution: WorkedSolution) -> list[tuple[str, str]]:
    """One call per step: (text, code)."""
    return [(_prose(step.lead), step.expression) for step in solution.steps]


def _one_call(solution: WorkedSolution) -> list[tuple[str, str]]:
    """One program with a variable per step."""
    given = {Fraction(number) for number in _NUMBER.findall(solution.problem.question.replace(",", ""))}
    names: dict[Fraction, str] = {}
    lines: list[str] = []
    for number, step in enumerate(solution.steps, start=1):
        expression = _NUMBER.sub(lambda match: names.get(Fraction(match[0]), match[0]), step.expression)
        prose = _prose(step.lead)
        lines += [f"# {prose}"] if prose else []
        lines.append(f"s{number} = {expression}")
        value = _fraction(step.value)
        if value is not None and value not in given:
            names[value] = f"s{number}"
    return [("", "\n".join([*lines, f"s{len(solution.steps)}"]))]


def _prose(lead: str) -> str:
    """The sentence up to its calculation, on one line: the calculation itself may hold values that come later."""
    return re.sub(r"(^|\s)[\d\s.,()+*/x×÷=$€£%-]*$", "", " ".join(lead.split()))


def _fraction(text: str) -> Fraction | None:
    try:
        return Fraction(text.replace(",", "").replace("$", "").strip())
    except (ValueError, ZeroDivisionError):
        return None


def _equal(printed: str, answer: str) -> bool:
    value, gold = _fraction(printed), _fraction(answer)
    return value is not None and gold is not None and abs(value - gold) < Fraction(1, 10**6)
