"""Any Python function as a tool: its name, type hints and docstring describe it to the model, as in TRL."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable
from typing import Any

from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import DocstringParsingException, TypeHintParsingException

from gtpo._own_code import text_of
from gtpo.errors import ConfigError
from gtpo.rollout.tool_process import Processes, RaisedError, ToolProcessError
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.rollout.tool_threads import LateError, Threads, ToolStuckError
from gtpo.rollout.tools import ToolResult
from gtpo.types import ToolCall

TIMEOUT_S = 30.0


class FunctionTool:
    """Calls a function, sync or async, outside the event loop. Its exceptions and timeouts are shown to the model.

    The function returns text, anything that JSON can represent, or a `ToolResult`; `ToolResult(..., final=True)` ends
    the rollout. An async function runs in the tool's own event loop and is cancelled at its time limit if it is waiting
    for something. A sync function, or an async one that blocks, can't be ended: it goes on in its thread, which nothing
    waits for, and when too many do so, further calls fail (`gtpo.rollout.tool_threads`). C code that holds the
    interpreter lock stops the trainer while it runs. With `process=True`, calls run in separate processes, which are
    killed at the limit, whatever they do (`gtpo.rollout.tool_process`).

    Args:
        function: a function with type hints, and a docstring in Google style that describes it and its arguments.
        timeout_s: time limit per call, in wall-clock seconds, above 0.
        process: run calls in separate processes. The function must be defined at the top of a module or file; arguments
            and result are passed as JSON.

    Raises:
        ConfigError: the docstring or a type hint is missing, a process can't load the function, or `timeout_s` is not
            above 0; the message names the function and what to do.
    """

    def __init__(self, function: Callable[..., Any], timeout_s: float = TIMEOUT_S, *, process: bool = False) -> None:
        name = getattr(function, "__name__", type(function).__name__)
        if not callable(function):
            raise ConfigError(f"tools: {function!r} is not a function")
        self.spec = spec_of(function, f"tools: the function {name!r}")
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise ConfigError(f"tools: the function {name!r}: timeout_s must be finite and above 0, not {timeout_s!r}")
        self._timeout_s = timeout_s
        self._calls: Threads | Processes = (Processes if process else Threads)(function, timeout_s)

    def open(self, key: Hashable) -> FunctionTool:
        """Returns self: a function is the same for all rollouts."""
        return self

    async def run(self, call: ToolCall) -> ToolResult:
        """Call the function with the call's arguments."""
        arguments = arguments_of(call, self.spec)
        try:
            return as_result(await self._calls.call(arguments))
        except (ToolStuckError, ToolProcessError):
            raise  # the tool's own failure, which masks the rollout
        except LateError:
            return timed_out(self._timeout_s)
        except Exception as error:
            return raised(error)

    async def aclose(self) -> None:
        """Nothing to close."""


def spec_of(function: Callable[..., Any], what: str) -> ToolSpec:
    """The description of a function for the model: its name, type hints and docstring.

    Args:
        function: the function, or a bound method.
        what: names the function in messages.

    Raises:
        ConfigError: the docstring or a type hint is missing; the message says what to add.
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
    """The arguments of a call by name; for the tool `python`, the program."""
    return dict(call.arguments) or ({"code": call.code} if spec.is_python else {})


def as_result(returned: Any) -> ToolResult:
    """What a function returned, as shown to the model: text unchanged, anything else as JSON."""
    if isinstance(returned, ToolResult):
        return returned
    text = returned if isinstance(returned, str) else json.dumps(returned, default=str, ensure_ascii=False)
    return ToolResult(text)


def raised(error: Exception) -> ToolResult:
    """What a function raised, as shown to the model."""
    said = str(error) if isinstance(error, RaisedError) else f"{type(error).__name__}: {text_of(error)}"
    return ToolResult(said, "error")


def timed_out(timeout_s: float) -> ToolResult:
    """The result, as shown to the model, of a call that exceeded its time limit."""
    return ToolResult(f"TimeoutError: no result within {timeout_s:g} s", "timeout")
