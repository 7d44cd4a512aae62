"""Any Python function as a tool: its name, type hints and docstring are what the model is told, as in TRL."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Hashable
from typing import Any

from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

from gtpo._async import in_thread
from gtpo.errors import ConfigError
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.rollout.tools import ToolResult
from gtpo.types import ToolCall

TIMEOUT_S = 30.0


class FunctionTool:
    """Calls a function, sync (in a thread) or async. What it raises, and a call past its time, is an observation.

    It returns text, anything that JSON can say, or a `ToolResult`; with `ToolResult(..., final=True)` the rollout ends.
    A sync function that is cut off at its time goes on in its thread, where nothing waits for it.

    Args:
        function: with type hints, and a docstring in Google style that describes it and its arguments.
        timeout_s: wall-clock seconds that a call may take.

    Raises:
        ConfigError: the docstring or a type hint is missing; names the function and what to add.
    """

    def __init__(self, function: Callable[..., Any], timeout_s: float = TIMEOUT_S) -> None:
        if not callable(function):
            raise ConfigError(f"tools: {function!r} is not a function")
        name = getattr(function, "__name__", type(function).__name__)
        self.spec = spec_of(function, f"tools: the function {name!r}")
        self._function, self._timeout_s = function, timeout_s

    def open(self, key: Hashable) -> FunctionTool:
        """Returns self: a function is the same for all rollouts."""
        return self

    async def run(self, call: ToolCall) -> ToolResult:
        """Call the function with the call's arguments."""
        arguments = arguments_of(call, self.spec)
        try:
            if inspect.iscoroutinefunction(self._function):
                running = self._function(**arguments)
            else:
                running = in_thread(self._function, **arguments)
            return as_result(await asyncio.wait_for(running, self._timeout_s))
        except TimeoutError:
            return timed_out(self._timeout_s)
        except Exception as error:
            return raised(error)

    async def aclose(self) -> None:
        """Nothing to close."""


def spec_of(function: Callable[..., Any], what: str) -> ToolSpec:
    """What the model is told of a function: its name, type hints and docstring.

    Args:
        function: the function, or a bound method.
        what: names it in messages.

    Raises:
        ConfigError: the docstring or a type hint is missing; says what to add.
    """
    try:
        schema = get_json_schema(function)["function"]
    except (DocstringParsingException, TypeHintParsingException) as error:
        raise ConfigError(
            f"{what} can't be a tool: {error}. Give it type hints, and a docstring with a description and a section "
            "'Args:' that describes each argument"
        ) from error
    parameters = schema["parameters"]
    return ToolSpec(
        schema["name"],
        schema["description"],
        parameters["properties"],
        tuple(parameters.get("required", ())),
        ability=f"call `{schema['name']}`",
        note=schema["description"],
    )


def arguments_of(call: ToolCall, spec: ToolSpec) -> dict[str, Any]:
    """The arguments of a call by name; of the tool `python` the program."""
    return dict(call.arguments) or ({"code": call.code} if spec.is_python else {})


def as_result(returned: Any) -> ToolResult:
    """What a function returned, as the model is told it: text as it is, anything else as JSON."""
    if isinstance(returned, ToolResult):
        return returned
    text = returned if isinstance(returned, str) else json.dumps(returned, default=str, ensure_ascii=False)
    return ToolResult(text)


def raised(error: Exception) -> ToolResult:
    """What a function raised, as the model is told it."""
    return ToolResult(f"{type(error).__name__}: {error}", "error")


def timed_out(timeout_s: float) -> ToolResult:
    """What the model is told of a call that was cut off."""
    return ToolResult(f"TimeoutError: no result within {timeout_s:g} s", "timeout")
