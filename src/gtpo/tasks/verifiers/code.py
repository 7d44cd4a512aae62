"""Checks programs and predicted outputs. Programs run in the sandbox, never in this process.

A problem's `extras["answer_kind"]` is one of three kinds:

`tests`
    The gold answer is test code that raises if something is wrong. The test code runs in one process and the candidate
    (after the problem's `prelude`) in another, which is asked for the results of calls. Plain data is exchanged, and is
    compared where the candidate has no influence. What the candidate does to its own process (patched builtins,
    frames, `gc`, threads, `atexit`, an `__eq__` that is always true) changes no verdict. See `_judge` for the data.
`io`
    The gold answer is JSON: inputs and outputs of a program, or arguments and results of a function. Each input gets
    its own process; all calls of a function share one. Expected outputs are compared outside the sandbox.
`literal`
    The gold answer is a Python literal, the value of an expression. The candidate is compared by value and type.

Programs run as in the official graders. A program that reads standard input is `__main__`, gets its input as descriptor
0, and ends when its threads have ended and its `atexit` functions have run. Functions are loaded under another
`__name__`; `sys.exit` while they load is not an error. Results are compared with `==`, as in LiveCodeBench: 1 is True,
5.0 is 5, a tuple is a list. Printed numbers are compared by value, so 1.0e+01 is 10.

Time limits count CPU time. A candidate that reached the wall-clock limit before its CPU-time limit is run
once more with four times as much wall-clock time.

`reading.program` finds the candidate: the last `<answer>` block, or else the last fenced block labelled as Python, or
else the last one without a label; for `literal` the last `<answer>` block or `\\boxed{}`. A program in a box is not
found. Objects that are not plain data, such as a generator, or a deque where a list is expected, are equal to nothing.
"""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from gtpo._async import run_async
from gtpo.errors import VerifierError
from gtpo.sandbox import Limits, LocalSandbox, Sandbox, Status
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers._io_tests import NOT_TO_THE_END, IOTests
from gtpo.tasks.verifiers._judge import program as judge_program
from gtpo.tasks.verifiers._judge.wire import encode
from gtpo.tasks.verifiers._programs import Programs, told
from gtpo.tasks.verifiers.answers import last_boxed
from gtpo.tasks.verifiers.base import Verdict
from gtpo.tasks.verifiers.reading import fenced, last_tag, program

_AT_ONCE = 32
_LITERAL_CHARS = 20_000
_KINDS = ("tests", "io", "literal")


class CodeVerifier:
    """Runs a candidate and its tests in the sandbox, or compares literals.

    Args:
        sandbox: runs the programs; by default a new `LocalSandbox` with `limits`, which `close` closes.
        limits: limits for the candidate, and separately for the tests.
    """

    def __init__(self, sandbox: Sandbox | None = None, limits: Limits | None = None) -> None:
        self._limits = limits or default_limits()
        self._own = LocalSandbox(limits=self._limits) if sandbox is None else None
        self._sandbox: Sandbox = sandbox or self._own  # type: ignore[assignment]
        self._programs = Programs(self._sandbox, self._limits)

    def verify_many(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """See `Verifier.verify_many`.

        Raises:
            VerifierError: the sandbox failed, or a problem's `answer_kind` is unknown.
        """
        return run_async(self._verify(answer_texts, problems))

    def has_answer(self, text: str, problem: Problem) -> bool:
        """Whether the text contains a program, or for `literal` a value."""
        return candidate(text, str(problem.extras.get("answer_kind", "tests"))) is not None

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int] | None:
        """Groups literals by value and type; text that is not a literal equals only the same text. Else None."""
        if problem.extras.get("answer_kind") != "literal":
            return None
        found: list[tuple[type | None, Any]] = []
        numbers = []
        for answer in answers:
            try:
                value = _literal(answer)
                read: tuple[type | None, Any] = (type(value), value)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                read = (None, answer.strip())
            if read not in found:
                found.append(read)
            numbers.append(found.index(read))
        return numbers

    def unusable(self, problems: Sequence[Problem]) -> dict[str, str]:
        """Returns problems of an unknown kind, with tests that do not parse, or with answers that are not literals."""
        found: dict[str, str] = {}
        for problem in problems:
            try:
                _READERS[_kind(problem)](problem.answer)
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
                found[problem.id] = f"{type(error).__name__}: {error}"
        return found

    def close(self) -> None:
        """See `Verifier.close`."""
        if self._own:
            self._own.close()

    async def _verify(self, texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """Checks equal answers to the same problem only once; rollouts of a group often give them."""
        places = asyncio.Semaphore(max(_AT_ONCE, getattr(self._sandbox, "max_workers", 0)))

        async def in_its_turn(text: str | None, problem: Problem) -> Verdict:
            async with places:  # candidates' outputs are held in memory
                return await self._one(text, problem)

        checks: dict[tuple[str | None, Problem], asyncio.Task[Verdict]] = {}
        for pair in zip(texts, problems, strict=True):
            if pair not in checks:
                checks[pair] = asyncio.ensure_future(in_its_turn(*pair))
        try:
            return [await checks[pair] for pair in zip(texts, problems, strict=True)]
        finally:
            for check in checks.values():
                check.cancel()
            await asyncio.gather(*checks.values(), return_exceptions=True)

    async def _one(self, text: str | None, problem: Problem) -> Verdict:
        try:
            kind = _kind(problem)
        except ValueError as error:
            raise VerifierError(f"problem {problem.id}: {error}") from error
        if text is None:
            return Verdict(False, 0.0, "the rollout ended without an answer")
        given = candidate(text, kind)
        if given is None:
            return Verdict(False, 0.0, f"no {'value' if kind == 'literal' else 'program'} in the final turn")
        if kind == "literal":
            return _compare(given, problem)
        return await (self._run_io if kind == "io" else self._run)(given, problem)

    async def _run(self, code: str, problem: Problem) -> Verdict:
        wrong = await self._programs.test(code, problem)
        return Verdict(not wrong, float(not wrong), wrong or "all tests passed", code)

    async def _run_io(self, code: str, problem: Problem) -> Verdict:
        try:
            tests = IOTests.parse(problem.answer)
        except ValueError as error:
            raise VerifierError(f"problem {problem.id}: {error}") from error
        check = self._run_stdin if tests.function is None else self._run_calls
        wrong = await check(code, problem, tests)
        return Verdict(wrong is None, float(wrong is None), wrong or "all tests passed", code)

    async def _run_stdin(self, code: str, problem: Problem, tests: IOTests) -> str | None:
        """Runs one process per test."""
        asked = {"prelude": str(problem.extras.get("prelude") or ""), "program": code}
        codes = [judge_program("stdin", {**asked, "input": text}, asked["prelude"] + code) for text in tests.inputs]
        results = await asyncio.gather(*(self._programs.run(code, problem) for code in codes))
        for number, result in enumerate(results, 1):
            if result.status is not Status.OK:
                return f"test {number} of {len(results)} ended with {told(result)}"
        return tests.wrong_output([result.stdout for result in results])

    async def _run_calls(self, code: str, problem: Problem, tests: IOTests) -> str | None:
        """Runs all calls in one process."""
        target = {"n": tests.function}
        calls = [["call", target, encode(given), encode({})] for given in tests.inputs]
        loaded = await self._programs.load(code, problem, calls, method=True, stop=True)
        if loaded.fault:
            return loaded.fault.replace("the program ended", "the tests ended")
        wrong = tests.wrong_result(loaded.outcomes)
        return NOT_TO_THE_END if wrong == "the tests ended with SystemExit" else wrong


def default_limits(cpu_s: float = 6.0, wall_s: float | None = None, memory_mb: int = 512) -> Limits:
    """Returns the limits of each process; the wall-clock limit defaults to twice the CPU time."""
    return Limits(cpu_s=cpu_s, wall_s=2 * cpu_s if wall_s is None else wall_s, memory_mb=memory_mb)


def candidate(text: str, kind: str) -> str | None:
    """Returns the last answer in a final turn for this kind of problem, or None."""
    if kind != "literal":
        return program(text)
    tag = last_tag(text)
    if tag is None:
        found = last_boxed(text)
    else:
        blocks = fenced(tag.content)
        found = blocks[-1].content if blocks else tag.content.strip("\n") if tag.closed else None
    return found if found and found.strip() else None


def _kind(problem: Problem) -> str:
    kind = problem.extras.get("answer_kind", "tests")
    if kind not in _KINDS:
        raise ValueError(f"answer_kind is {kind!r}; it must be one of {', '.join(_KINDS)}")
    return str(kind)


def _literal(text: str) -> Any:
    if len(text) > _LITERAL_CHARS:
        raise ValueError(f"a literal of more than {_LITERAL_CHARS} characters")
    return ast.literal_eval(text.strip())


def _compare(given: str, problem: Problem) -> Verdict:
    try:
        value = _literal(given)
        same = type(value) is type(gold := _literal(problem.answer)) and bool(value == gold)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return Verdict(False, 0.0, "not a Python literal", given)
    return Verdict(same, float(same), "the same value" if same else "another value", given)


_READERS: dict[str, Callable[[str], Any]] = {"tests": ast.parse, "io": IOTests.parse, "literal": _literal}
