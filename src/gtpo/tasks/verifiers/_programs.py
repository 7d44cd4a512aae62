"""Runs candidates and test code in the sandbox, each in its own process, and compares their outcomes.

Time limits count CPU time: a program that reached only its wall-clock limit is run once more with `LONGER` times
as much wall-clock time, since other work on the machine may have kept it waiting.
"""

from __future__ import annotations

import ast
import builtins
import json
import secrets
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from gtpo.errors import VerifierError
from gtpo.sandbox import ExecResult, Limits, Sandbox, Status
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers._io_tests import NOT_TO_THE_END
from gtpo.tasks.verifiers._judge import program
from gtpo.tasks.verifiers._literal_tests import MOST_CHARACTERS, LiteralTests, literal_tests

LONGER = 4.0
OUTPUT_BYTES = 16 << 20
_MOST_ROUNDS, _MOST_CACHED = 12, 4096
_MOST_CONTAINERS, _MOST_VALUES = 500_000, 2_000_000
"""Limits on a candidate's output: about 250 MB once it is parsed."""


@dataclass(frozen=True)
class Loaded:
    """The result of loading a candidate in its process.

    Attributes:
        fault: why there are no outcomes; "" if there are.
        kinds: the kinds of its globals, by name; None if loading did not finish.
        outcomes: one per operation, in the format of `_judge.candidate`.
        characters: the length of the outcomes as text.
    """

    fault: str
    kinds: dict[str, Any] | None
    outcomes: list[Any]
    characters: int = 0


class Programs:
    """Runs both sides of a check: the candidate and the tests.

    Args:
        sandbox: runs the programs.
        limits: limits of each process.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self._sandbox, self._limits = sandbox, limits
        self._asked: OrderedDict[tuple[Any, ...], list[Any]] = OrderedDict()

    async def run(self, code: str, problem: Problem, limits: Limits | None = None) -> ExecResult:
        """Runs one program.

        Raises:
            VerifierError: the sandbox failed.
        """
        limits = limits or self._limits
        result = await self._sandbox.run(code, limits=limits, seed=0)
        if result.status is Status.TIMEOUT and result.cpu_s < limits.cpu_s:
            patient = replace(limits, wall_s=LONGER * limits.wall_s)
            result = await self._sandbox.run(code, limits=patient, seed=0)
        if result.status is Status.TOOL_FAILURE:
            raise VerifierError(f"problem {problem.id}: the sandbox failed: {result.note}")
        return result

    async def load(self, code: str, problem: Problem, operations: list[Any], **options: Any) -> Loaded:
        """Loads a candidate and runs the operations; see `_judge.candidate.main` for the options."""
        word = secrets.token_hex(16)
        asked: dict[str, Any] = {"names": [], "method": False, "stop": False, **options}
        asked |= {"word": word, "program": code, "prelude": _prelude(problem), "operations": operations}
        limits = replace(self._limits, output_bytes=max(self._limits.output_bytes, OUTPUT_BYTES))
        result = await self.run(program("candidate", asked, asked["prelude"] + code), problem, limits)
        said = [line.removeprefix(word) for line in result.stdout.split("\n") if line.startswith(word)]
        if any(map(_is_too_much, said)):
            return Loaded("the program gave more values than can be compared", {}, [])
        kinds, outcomes = (
            json_data(said[0], dict) if said else None,
            json_data(said[1], list) if len(said) > 1 else None,
        )
        if kinds is None and result.status is not Status.OK:
            return Loaded(f"the program ended with {told(result)}", None, [])
        if outcomes is None or len(outcomes) > len(operations):
            fault = NOT_TO_THE_END if result.status is Status.OK else f"the tests ended with {told(result)}"
            return Loaded(fault, kinds, [])
        return Loaded("", kinds, outcomes, len(said[1]))

    async def test(self, code: str, problem: Problem) -> str:
        """Runs the problem's test code against the candidate; returns what is wrong, or "" if nothing is."""
        names = _names(problem, code)
        plain = [name["name"] for name in names]
        simple = literal_tests(problem.answer, plain[0]) if len(plain) == 1 else None
        operations = simple.calls if simple else await self._look_ahead(problem, names)
        for _ in range(_MOST_ROUNDS):
            loaded = await self.load(code, problem, operations, names=plain)
            if simple and not loaded.fault and (wrong := compared(simple, loaded, plain[0])) is not None:
                return wrong
            if loaded.fault and (loaded.kinds is not None or loaded.fault.startswith("the program")):
                return loaded.fault
            operations = operations[: len(loaded.outcomes)]
            asked = {"operations": operations, "outcomes": loaded.outcomes, "kinds": loaded.kinds or {}}
            result, found = await self._tests(problem, names, ahead=False, **asked)
            if found is True:
                return ""
            if not isinstance(found, list):
                return f"the tests ended with {told(result)}" if result.status is not Status.OK else NOT_TO_THE_END
            _, more = await self._tests(problem, names, ahead=True, **asked)
            known = len(operations)
            operations = more if isinstance(more, list) and len(more) > known else operations + found
        return "the tests ask for results that depend on each other too often"

    async def _look_ahead(self, problem: Problem, names: list[dict[str, Any]]) -> list[Any]:
        """The operations that the tests will ask for, as far as known without a candidate. Cached per problem."""
        key = (_prelude(problem), problem.answer, json.dumps(names))
        if key not in self._asked:
            _, found = await self._tests(problem, names, ahead=True, operations=[], outcomes=[], kinds=None)
            self._asked[key] = found if isinstance(found, list) else []
            while len(self._asked) > _MOST_CACHED:
                self._asked.popitem(last=False)
        return self._asked[key]

    async def _tests(self, problem: Problem, names: list[dict[str, Any]], **asked: Any) -> tuple[ExecResult, Any]:
        """Runs the tests once; returns the result and the content of its last line."""
        word = secrets.token_hex(16)
        asked = {"word": word, "prelude": _prelude(problem), "tests": problem.answer, "names": names, **asked}
        limits = replace(self._limits, output_bytes=max(self._limits.output_bytes, OUTPUT_BYTES))
        code = asked["prelude"] + problem.answer
        result = await self.run(program("asserts", asked, code), problem, limits)
        line = result.stdout.rpartition("\n")[2]
        found = json_data(line.removeprefix(word), (list, bool)) if line.startswith(word) else None
        return result, found if result.status is Status.OK else None


def compared(tests: LiteralTests, loaded: Loaded, name: str) -> str | None:
    """Returns what is wrong, or ""; None if the tests must be run to decide."""
    if (loaded.kinds or {}).get(name) != ["callable"] or loaded.characters > MOST_CHARACTERS:
        return None
    try:
        wrong = tests.wrong(loaded.outcomes)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if wrong == "exit":
        return NOT_TO_THE_END
    return f"the tests ended with {wrong}" if wrong else wrong


def told(result: ExecResult) -> str:
    """Returns how the program ended, in a few words."""
    return result.error_type or result.note or result.status.value


def _prelude(problem: Problem) -> str:
    return str(problem.extras.get("prelude") or "")


def _is_too_much(text: str) -> bool:
    """Whether parsed JSON would need far more memory than its text; candidates control what they write."""
    return text.count("[") + text.count("{") > _MOST_CONTAINERS or text.count(",") > _MOST_VALUES


def json_data(text: str, kind: Any) -> Any:
    """Returns the JSON data of this kind, or None."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, kind) else None


def _names(problem: Problem, code: str) -> list[dict[str, Any]]:
    """The names that refer to the candidate: the entry point, and what the tests use and do not define.

    If a test calls only names that are built in, it means the candidate's function of that name.
    """
    tree = ast.parse(problem.answer)
    used, bound = _used_and_bound(tree)
    entry = problem.extras.get("entry_point")
    always = {entry} if isinstance(entry, str) and entry.isidentifier() else set()
    free = {name for name in used - bound if not hasattr(builtins, name)} | (always & used)
    if not free:
        free = always = {name for name in used - bound if f"def {name}(" in code or f"{name} =" in code}
    return [{"name": name, "always": name in always} for name in sorted(free)]


def _used_and_bound(tree: ast.AST) -> tuple[set[str], set[str]]:
    used: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return used, bound
