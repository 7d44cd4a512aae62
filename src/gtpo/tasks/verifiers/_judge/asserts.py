"""The tests' side: runs test code against a stand-in for the candidate's functions.

It runs twice. The first run looks ahead, without any outcome: each statement of the tests is tried on its own, the
operations on the stand-ins are recorded, and their results agree to everything. Then the candidate's process performs
these operations, and the tests run unchanged with the outcomes. Operations that are still missing are requested again.
The candidate has no influence on this process: it only provides data.

This text is sent into the sandbox, after that of `wire`.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
import types
from collections import deque
from typing import Any

if __package__:  # in the sandbox all of it is one module
    from .wire import Opaque, Reference, decode, encode

MOST_OPERATIONS = 5000


class Enough(BaseException):
    """Ends looking ahead when too many operations were recorded."""


class Needed(BaseException):
    """The outcome of an operation is not known yet."""


class CandidateLeft(SystemExit):
    """The candidate ended its process in a call, for example by `sys.exit`."""


def main(asked: dict[str, Any]) -> None:
    """Runs the tests and writes the result.

    Args:
        asked: `word`, `prelude`, `tests`, `names` (of stand-ins), `operations` and their `outcomes`, `kinds` (of the
            names; null: not known), `ahead`. The last line is the word and, as JSON, the operations that are needed
            (all of them when looking ahead), or true if the tests passed.
    """
    stand = StandIns(asked["operations"], asked["outcomes"], asked["ahead"])
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    space = module.__dict__
    exec(compile(asked["prelude"], "<prelude>", "exec", dont_inherit=True), space)
    for name in asked["names"]:
        if name["always"] or name["name"] not in space:
            stand.define(name["name"], asked["kinds"], space)
    tree = ast.parse(asked["tests"], "<tests>")
    if asked["ahead"]:
        tree = ast.fix_missing_locations(EachAlone().visit(tree))
        space["__Enough__"] = Enough
    passed = False
    try:
        exec(compile(tree, "<tests>", "exec", dont_inherit=True), space)
        passed = True
    except CandidateLeft:
        pass
    except SystemExit as left:
        passed = left.code in (None, 0)
        if not passed and not stand.asked:
            raise
    except BaseException:
        if not (stand.asked or asked["ahead"]):
            raise
    found = stand.operations if asked["ahead"] else stand.asked or passed
    sys.stdout.flush()
    data = ("\n" + asked["word"] + " " + json.dumps(found, separators=(",", ":"))).encode()
    while data:
        data = data[os.write(1, data) :]


class EachAlone(ast.NodeTransformer):
    """Wraps each simple statement, so that the next one is tried even if it fails."""

    def visit(self, node: ast.AST) -> Any:
        """Puts a simple statement in a `try`."""
        self.generic_visit(node)
        if not isinstance(node, (ast.Assert, ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Raise)):
            return node
        stop = ast.ExceptHandler(ast.Name("__Enough__", ast.Load()), None, [ast.Raise()])
        go_on = ast.ExceptHandler(None, None, [ast.Pass()])
        return ast.copy_location(ast.Try([node], [stop, go_on], [], []), node)


class StandIns:
    """Stands in for the candidate's functions and objects.

    Args:
        operations: the operations performed in the candidate's process.
        outcomes: the outcome of each.
        ahead: whether unknown operations are recorded and answered; else they end the tests.
    """

    def __init__(self, operations: list[Any], outcomes: list[Any], ahead: bool) -> None:
        self.operations, self.outcomes, self.ahead = list(operations), list(outcomes), ahead
        self.asked: list[Any] = []
        self._errors: dict[str, Any] = {}
        self._known: dict[str, deque[int]] = {}
        for number in range(len(outcomes)):
            self._known.setdefault(self._key(operations[number]), deque()).append(number)

    def define(self, name: str, kinds: Any, space: dict[str, Any]) -> None:
        """Defines the stand-in for a name in `space`, if the candidate has that name."""
        kind: Any = ["callable"] if kinds is None else kinds.get(name)
        if kind is None:
            return
        if kind[0] == "value":
            space[name] = decode(kind[1])
        elif kind[0] == "error":
            space[name] = self._error_class(kind[1])
        else:
            space[name] = self._function(name)

    def _function(self, name: str) -> Any:
        def stand_in(*arguments: Any, **named: Any) -> Any:
            return self.do(["call", {"n": name}, encode(list(arguments)), encode(named)], arguments)

        stand_in.__name__ = stand_in.__qualname__ = name
        return stand_in

    def do(self, operation: list[Any], arguments: tuple[Any, ...] = ()) -> Any:
        """Returns the outcome of an operation, as if it had been performed here."""
        numbers = self._known.get(json.dumps(operation, separators=(",", ":")))
        if numbers:
            return self._outcome(numbers.popleft(), arguments)
        if not self.ahead:
            self.asked.append(operation)
            raise Needed
        if len(self.operations) >= MOST_OPERATIONS:
            raise Enough
        self.operations.append(operation)
        return Agreeable(self, len(self.operations) - 1)

    def _outcome(self, number: int, arguments: tuple[Any, ...]) -> Any:
        rest: Any
        kind, *rest = self.outcomes[number]
        if kind == "exit":
            raise CandidateLeft
        if kind == "error":
            error = self._error_class(rest[0])
            if issubclass(error, SystemExit):
                raise CandidateLeft
            try:
                raise error(*decode(rest[1]))
            except TypeError:
                raise error from None
        if len(rest) > 1:
            for given, after in zip(arguments, decode(rest[1]), strict=False):
                _change(given, after)
        result = decode(rest[0])
        return Remote(self, number) if isinstance(result, Opaque) else result

    def _error_class(self, names: list[str]) -> Any:
        """The built-in exception class, or one created here for the candidate's own class."""
        found = getattr(builtins, names[0], None)
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
        if names[0] not in self._errors:
            bases = (getattr(builtins, name, None) for name in names[1:])
            base = next((b for b in bases if isinstance(b, type) and issubclass(b, BaseException)), Exception)
            self._errors[names[0]] = type(names[0], (base,), {})
        return self._errors[names[0]]

    def _key(self, operation: list[Any]) -> str:
        """The text of an operation after the known results of earlier ones are filled in."""
        return json.dumps(self._resolved(operation), separators=(",", ":"))

    def _resolved(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self._resolved(item) for item in data]
        if not isinstance(data, dict):
            return data
        if set(data) == {"r"} and data["r"] < len(self.outcomes):
            kind, *rest = self.outcomes[data["r"]]
            if kind == "value" and not (isinstance(rest[0], dict) and "o" in rest[0]):
                return rest[0]
        return {key: self._resolved(item) for key, item in data.items()}


class Remote(Reference):
    """An object of the candidate. It equals only itself, as its own `__eq__` is never called."""

    def __init__(self, stand: StandIns, operation: int) -> None:
        object.__setattr__(self, "stand", stand)
        object.__setattr__(self, "operation", operation)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.stand.do(["get", {"r": self.operation}, name])

    def __setattr__(self, name: str, value: Any) -> None:
        self.stand.do(["set", {"r": self.operation}, name, encode(value)])

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.stand.do(["call", {"r": self.operation}, encode(list(arguments)), encode(named)], arguments)


class Agreeable(Remote):
    """An unknown result that lets the tests continue when looking ahead: true, empty, and equal to everything."""

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __index__(self) -> int:
        return 0

    __int__ = __index__

    def __float__(self) -> float:
        return 0.0

    def _true(self, *_: Any) -> bool:
        return True

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = _true

    def _itself(self, *_: Any) -> Agreeable:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _itself
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __abs__ = __getitem__ = _itself
    __and__ = __or__ = __xor__ = __round__ = _itself


def _change(given: Any, after: Any) -> None:
    """Applies to an argument the change that the candidate made to its copy."""
    if isinstance(given, list) and isinstance(after, list):
        given[:] = after
    elif isinstance(given, (dict, set)) and isinstance(after, type(given)):
        given.clear()
        given.update(after)
    elif isinstance(given, (bytearray, deque)):
        given.clear()
        given.extend(after)
