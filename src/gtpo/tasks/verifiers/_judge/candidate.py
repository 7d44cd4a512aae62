"""The candidate's side: loads a program, performs the requested operations with it, and reports their outcomes.

Tests and expected values are never in this process. The program can only return other results; it can't declare them
correct. The output is one line with the word and the kinds of the names after the program is loaded, and one line with
the word and the outcomes at the end.

This text is sent into the sandbox, after that of `wire`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types
from typing import Any

if __package__:  # in the sandbox all of it is one module
    from .wire import decode, encode


def main(asked: dict[str, Any]) -> None:
    """Loads the program and performs the operations.

    Args:
        asked: `word`, `prelude`, `program`, `names` (whose kinds are told), `method` (a class `Solution` has the
            function), `stop` (at the first operation that raises), `operations`: lists of `["call", target,
            arguments, named arguments]`, `["get", target, attribute]` or `["set", target, attribute, value]`, where
            a target is `{"n": name}` or `{"r": number of an operation}`.
    """
    out = os.dup(1)
    write, word = os.write, asked["word"].encode()

    def tell(text: str) -> None:
        data = b"\n" + word + b" " + text.encode() + b"\n"
        while data:
            data = data[write(out, data) :]

    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    space = module.__dict__
    for name, text in (("<prelude>", asked["prelude"]), ("<program>", asked["program"])):
        with contextlib.suppress(SystemExit):
            exec(compile(text, name, "exec", dont_inherit=True), space)
    tell(json.dumps({name: _kind(space[name]) for name in asked["names"] if name in space}))
    results: list[Any] = []
    outcomes: list[Any] = []
    for operation in asked["operations"]:
        outcomes.append(_outcome(operation, space, results, asked["method"]))
        if asked["stop"] and outcomes[-1][0] != "value":
            break
    tell(json.dumps(outcomes, separators=(",", ":")))


def _kind(value: Any) -> Any:
    """Describes a global of the program for the other side."""
    if isinstance(value, type) and issubclass(value, BaseException):
        return ["error", [kind.__name__ for kind in value.__mro__]]
    if callable(value):
        return ["callable"]
    try:
        return ["value", encode(value)]
    except Exception:
        return ["callable"]


def _outcome(operation: list[Any], space: dict[str, Any], results: list[Any], method: bool) -> list[Any]:
    """`["value", data, arguments after the call if it changed them]`, `["error", classes, arguments]` or `["exit"]`."""
    results.append(None)
    try:
        result, after = _done(operation, space, results, method)
        results[-1] = result
        data = encode(result)  # at once: a list may be used again by the next call
        return ["value", data] if after is None else ["value", data, after]
    except SystemExit:
        return ["exit"]
    except BaseException as error:
        names = [str(kind.__name__) for kind in type(error).__mro__]
        try:
            return ["error", names, encode(list(error.args))]
        except BaseException:
            return ["error", names, {"l": []}]


def _done(operation: list[Any], space: dict[str, Any], results: list[Any], method: bool) -> tuple[Any, Any]:
    what, target, *rest = operation
    if "r" in target:
        thing = results[target["r"]]
    elif method and "Solution" in space:
        thing = getattr(space["Solution"](), target["n"])
    else:
        thing = space[target["n"]]
    if what == "get":
        return getattr(thing, rest[0]), None
    if what == "set":
        setattr(thing, rest[0], decode(rest[1], results.__getitem__))
        return None, None
    arguments = decode(rest[0], results.__getitem__)
    named = decode(rest[1], results.__getitem__)
    result = thing(*arguments, **named)
    try:
        before, after = json.dumps(rest[0], separators=(",", ":")), encode(list(arguments))
        changed = '"r"' not in before and json.dumps(after, separators=(",", ":")) != before
    except Exception:
        changed = False
    return result, after if changed else None
