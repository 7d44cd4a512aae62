"""The description of a tool for the model, and the check of calls against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gtpo.errors import ConfigError
from gtpo.types import InvalidCall, ToolCall

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def kinds(parameter: Mapping[str, Any]) -> tuple[str, ...]:
    """The JSON types that a parameter may have, by its `type`, `anyOf` or `oneOf`, and `nullable`; none: any."""
    stated = parameter.get("type")
    if stated is None:
        branches = [kinds(branch) for branch in parameter.get("anyOf") or parameter.get("oneOf") or ()]
        found = [kind for branch in branches for kind in branch] if all(branches) else []
    else:
        found = [stated] if isinstance(stated, str) else list(stated)
    if found and parameter.get("nullable"):
        found.append("null")
    return tuple(dict.fromkeys(found))


def _is(value: object, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


@dataclass(frozen=True)
class ToolSpec:
    """The description of one tool.

    Attributes:
        name: the name by which the model calls it.
        description: one sentence for the tool's schema.
        parameters: the arguments as JSON Schema properties: name to `{"type": ..., "description": ...}`. Only the types
            are checked here (`kinds`); the tool itself checks the rest and answers with a sentence.
        required: arguments that a call must give; may be empty. The first one is what a fenced block holds.
        ability: what follows "You can" in the system prompt.
        note: a sentence for the system prompt; may be blank.
        labels: further labels of fenced blocks that call it, besides its name.
    """

    name: str
    description: str
    parameters: Mapping[str, Mapping[str, Any]]
    required: tuple[str, ...]
    ability: str
    note: str = ""
    labels: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.is_python and set(self.parameters) != {"code"}:
            raise ConfigError(
                "tool 'python': its one argument must be named `code`, the program; rename the argument or the tool"
            )
        if unknown := sorted(set(self.required) - set(self.parameters)):
            raise ConfigError(f"tool {self.name!r}: `required` names {unknown[0]!r}, which is not in its `parameters`")
        found = {kind for parameter in self.parameters.values() for kind in kinds(parameter)}
        if strange := sorted(found - set(_TYPES)):
            raise ConfigError(f"tool {self.name!r}: unknown parameter types {strange}; known: {sorted(_TYPES)}")

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as a JSON schema, as chat templates and servers take it."""
        parameters = {
            "type": "object",
            "properties": {name: dict(value) for name, value in self.parameters.items()},
            "required": list(self.required),
        }
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}

    @property
    def argument(self) -> str | None:
        """The argument by which a call is shown: the first required one, else the first; None: it takes none."""
        return next(iter((*self.required, *self.parameters)), None)

    def arguments(self, value: Any) -> dict[str, Any]:
        """The arguments of a call that gives `argument` this value; without one, none."""
        return {} if self.argument is None else {self.argument: value}

    @property
    def sample(self) -> Any:
        """A value for `argument`, to find out how a call is written; None without an argument."""
        if self.argument is None:
            return None
        kind = next((kind for kind in kinds(self.parameters[self.argument]) if kind != "null"), "string")
        return {"integer": 1, "number": 1, "boolean": True, "array": [1], "object": {"a": 1}}.get(kind, "1")

    @property
    def is_python(self) -> bool:
        """Whether its argument is a Python program, which then is the call's code."""
        return self.name == "python"

    def call(self, arguments: object) -> ToolCall | InvalidCall:
        """A call with these arguments, or what is wrong with them."""
        if arguments is None and not self.required:
            arguments = {}
        if not isinstance(arguments, dict):
            return InvalidCall(f'"arguments" must be an object{_entries(self.required)}')
        if surplus := sorted(set(arguments) - set(self.parameters)):
            return InvalidCall(f"{self.name!r} takes {_takes(self.parameters)}, not {', '.join(map(repr, surplus))}")
        for name in self.required:
            if arguments.get(name) is None and not ("null" in kinds(self.parameters[name]) and name in arguments):
                return InvalidCall(f'the argument "{name}" is missing')
        for name, value in arguments.items():
            allowed = kinds(self.parameters[name])
            if allowed and not any(_is(value, kind) for kind in allowed):
                return InvalidCall(f'the argument "{name}" must be {" or ".join(map(_a, allowed))}')
        for name in self.required:
            if isinstance(arguments[name], str) and not arguments[name].strip():
                return InvalidCall(f"the {name} is empty")
        if self.is_python:
            return ToolCall(arguments["code"])
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return ToolCall(f"{self.name}({shown})", self.name, arguments)


def python_spec(keeps_state: bool = False) -> ToolSpec:
    """The description of the Python tool; `keeps_state`: a call finds what earlier calls of its rollout defined."""
    return ToolSpec(
        "python",
        "Run a Python program and return what it printed and the value of its last expression.",
        {"code": {"type": "string", "description": "The program to run."}},
        ("code",),
        ability="run Python",
        note="Variables are kept from run to run." if keeps_state else "Each run starts afresh.",
        labels=("py", "python3", "tool_code"),
    )


PYTHON = python_spec()


def typical(specs: Sequence[ToolSpec]) -> ToolSpec:
    """The tool used to find out how calls are written: one that takes a text, else one that takes any argument."""
    with_text = [spec for spec in specs if isinstance(spec.sample, str)]
    return (with_text or [spec for spec in specs if spec.argument] or list(specs))[0]


def _takes(parameters: Mapping[str, Any]) -> str:
    count = {0: "no arguments", 1: "one argument, "}.get(len(parameters), f"{len(parameters)} arguments, ")
    return count + ", ".join(f'"{name}"' for name in parameters)


def _entries(names: Sequence[str]) -> str:
    if not names:
        return ""
    if len(names) == 1:
        return f' with one entry, "{names[0]}"'
    return " with the entries " + ", ".join(f'"{name}"' for name in names)


def _a(kind: str) -> str:
    return kind if kind == "null" else f"{'an' if kind[0] in 'aio' else 'a'} {kind}"
