"""Program synthesis and output prediction: programs run in the sandbox, never here.

Three kinds, told by a problem's `extras["answer_kind"]`:

`tests`
    The gold answer is test code that raises if something is wrong. It runs in one process, the candidate (after the
    problem's `prelude`) in another, where it is asked for the results of calls: plain data crosses, and is compared
    where the candidate has no hand. What the candidate does to its own process (patched builtins, frames, `gc`,
    threads, `atexit`, an `__eq__` that is always true) changes no verdict. See `_judge` for what crosses.
`io`
    The gold answer is JSON: inputs and outputs of a program, or arguments and results of a function. Each input has a
    process of its own, all calls of a function share one. What is expected is compared outside the sandbox.
`literal`
    The gold answer is a Python literal, the value of an expression. The candidate is compared by value and type.

Programs run as official graders run them. A program on standard input is `__main__`, has its input as descriptor 0, and
ends when its threads have ended and what it left with `atexit` has run. Functions are loaded under another `__name__`;
`sys.exit` while they load is no fault. Results are compared with `==`, as LiveCodeBench does: 1 is True, 5.0 is 5, a
tuple is a list; printed numbers by value, so that 1.0e+01 is 10.

The clock is processor time. A candidate that ran out of wall-clock time before it had used its processor time is tried
once more with four times as much.

Where the candidate is found, `reading.program` says: the last `<answer>` block, or else the last fenced block labelled
as Python, or else the last one without a label; for `literal` the last `<answer>` block or `\\boxed{}`. A boxed program
is none. Objects that are no plain data, such as a deque where a list is expected or a generator, are equal to nothing.
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
        sandbox: by default a `LocalSandbox` with `limits`, which `close` closes.
        limits: of the candidate, and again of the tests.
    """

    def __init__(self, sandbox: Sandbox | None = None, limits: Limits | None = None) -> None:
        self._limits = limits or default_limits()
        self._own = LocalSandbox(limits=self._limits) if sandbox is None else None
        self._sandbox: Sandbox = sandbox or self._own  # type: ignore[assignment]
        self._programs = Programs(self._sandbox, self._limits)

    def verify_many(self, answer_texts: Sequence[str | None], problems: Sequence[Problem]) -> list[Verdict]:
        """See `Verifier.verify_many`.

        Raises:
            VerifierError: the sandbox failed, or a problem is of no known kind.
        """
        return run_async(self._verify(answer_texts, problems))

    def has_answer(self, text: str, problem: Problem) -> bool:
        """Whether the text holds a program, or a value where one is wanted."""
        return candidate(text, str(problem.extras.get("answer_kind", "tests"))) is not None

    def classes(self, answers: Sequence[str], problem: Problem) -> list[int] | None:
        """By value and type for `literal`, where what is no literal is equal only to the same text; else None."""
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
        """Problems of no known kind, tests that do not parse, and answers that are no literal."""
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
        """The same text to the same problem, as rollouts of a group give it, is checked once."""
        places = asyncio.Semaphore(max(_AT_ONCE, getattr(self._sandbox, "max_workers", 0)))

        async def in_its_turn(text: str | None, problem: Problem) -> Verdict:
            async with places:  # what candidates say is held in memory
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
        """A process a test."""
        asked = {"prelude": str(problem.extras.get("prelude") or ""), "program": code}
        codes = [judge_program("stdin", {**asked, "input": text}, asked["prelude"] + code) for text in tests.inputs]
        results = await asyncio.gather(*(self._programs.run(code, problem) for code in codes))
        for number, result in enumerate(results, 1):
            if result.status is not Status.OK:
                return f"test {number} of {len(results)} ended with {told(result)}"
        return tests.wrong_output([result.stdout for result in results])

    async def _run_calls(self, code: str, problem: Problem, tests: IOTests) -> str | None:
        """All calls in one process."""
        target = {"n": tests.function}
        calls = [["call", target, encode(given), encode({})] for given in tests.inputs]
        loaded = await self._programs.load(code, problem, calls, method=True, stop=True)
        if loaded.fault:
            return loaded.fault.replace("the program ended", "the tests ended")
        wrong = tests.wrong_result(loaded.outcomes)
        return NOT_TO_THE_END if wrong == "the tests ended with SystemExit" else wrong


def default_limits(cpu_s: float = 6.0, wall_s: float | None = None, memory_mb: int = 512) -> Limits:
    """Limits of each process; by default twice as much wall-clock time as processor time."""
    return Limits(cpu_s=cpu_s, wall_s=2 * cpu_s if wall_s is None else wall_s, memory_mb=memory_mb)


def candidate(text: str, kind: str) -> str | None:
    """The last answer of a final turn for that kind of problem, or None."""
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
        raise ValueError(f"answer_kind is {kind!r}; known are {', '.join(_KINDS)}")
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
