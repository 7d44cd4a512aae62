"""Pieces that readers of calls share: thoughts, marks of other families' syntaxes, and JSON calls."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from gtpo.rollout.tool_spec import ToolSpec
from gtpo.types import InvalidCall, ToolCall

OPEN_THOUGHT, CLOSE_THOUGHT = "<think>", "</think>"

_FOREIGN = {
    r"<tool_call>": "JSON in <tool_call> tags (Qwen, Hermes)",
    r"<function[= ]": "<function=...> (Qwen3-Coder, Qwen3.5, Llama)",
    r"<\|python_tag\|>": "<|python_tag|> (Llama 3)",
    r"\[TOOL_CALLS\]": "[TOOL_CALLS] (Mistral)",
    r"<\|channel\|>\w* ?to=|\bto=functions\.": "to=functions.... (gpt-oss)",
    r"<arg_key>": "<arg_key> (GLM)",
    r"<｜tool▁calls?▁begin｜>|<｜DSML｜": "<｜tool▁call▁begin｜> (DeepSeek)",
    r"<\|tool_calls_section_begin\|>|<\|tool_call_begin\|>": "<|tool_call_begin|> (Kimi)",
    r"<minimax:tool_call>|<invoke name=": "<invoke name=...> (MiniMax)",
    r"<\|tool_call_start\|>": "<|tool_call_start|> (LFM2)",
    r"<\|START_ACTION\|>": "<|START_ACTION|> (Cohere)",
    r"<\|tool_call>": "<|tool_call> (Gemma 4)",
    r"<\|tool_call\|>": "<|tool_call|> (Granite, Phi-4)",
    r"\bfunctools\[": "functools[...] (Phi)",
    r"<tool_calls>": "<tool_calls> (Phi, Hunyuan)",
    r"<｜hy_.*?tool": "Hunyuan's tags",
}
_FOREIGN_MARK = re.compile("|".join(f"({pattern})" for pattern in _FOREIGN))


def joined(text: str, call: str) -> str:
    """A turn of some text and a call, either of which may be blank."""
    return "\n".join(part for part in (text, call) if part)


def thought_end(text: str, start: int) -> int:
    """Where the thought that `start` is in ends: past its closing tag, or at the end of the text.

    A closing tag between quotes is part of the thought if another one closes it before the next thought opens.
    """
    limit = text.find(OPEN_THOUGHT, start)
    tags = [match.end() for match in re.finditer(CLOSE_THOUGHT, text[start:])]
    ends = [start + end for end in tags]
    if not ends:
        return len(text)
    within = [end for end in ends if limit < 0 or end <= limit] or ends[:1]
    return next((end for end in within if not _quoted(text, end - len(CLOSE_THOUGHT), end)), within[0])


def _quoted(text: str, start: int, stop: int) -> bool:
    return start > 0 and stop < len(text) and text[start - 1] == text[stop] and text[stop] in "'\"`"


def without_thoughts(text: str) -> str:
    """The text outside of `<think>` tags; a closing tag that nothing opened ends a thought that began before."""
    close, opening = text.find(CLOSE_THOUGHT), text.find(OPEN_THOUGHT)
    if close >= 0 and (opening < 0 or close < opening):
        text = text[thought_end(text, 0) :]
    parts = []
    while (opening := text.find(OPEN_THOUGHT)) >= 0:
        parts.append(text[:opening])
        text = text[thought_end(text, opening + len(OPEN_THOUGHT)) :]
    return "".join([*parts, text])


def foreign_call(text: str, expected: str, specs: Sequence[ToolSpec], own: str = "") -> tuple[InvalidCall, ...]:
    """One invalid call if a turn that has no call in its own format has one in the syntax of another format.

    Args:
        text: the turn; what is in `<think>` tags is not looked at.
        expected: how calls are written here.
        specs: the tools, to recognise a bare JSON call.
        own: text that contains the format's own marks, which do not count as those of another format.
    """
    text = without_thoughts(text)
    for match in _FOREIGN_MARK.finditer(text):
        if match[0] not in own:
            written = list(_FOREIGN.values())[(match.lastindex or 1) - 1]
            return (InvalidCall(f"the call is written as {written}; write it as {expected}"),)
    if bare_json_call(text, specs):
        return (InvalidCall(f"the call is written as bare JSON; write it as {expected}"),)
    return ()


def bare_json_call(text: str, specs: Sequence[ToolSpec]) -> bool:
    """Whether a text is only a JSON object that names one of the tools and gives arguments."""
    try:
        found = load_json(text.strip())
    except ValueError:
        return False
    name, arguments = _name_and_arguments(found) if isinstance(found, dict) else (None, None)
    return arguments is not None and name in {spec.name for spec in specs}


def is_call(found: object, specs: Sequence[ToolSpec]) -> bool:
    """Whether JSON in a text is meant as a call: it gives arguments, or names one of the tools."""
    name, arguments = _name_and_arguments(found) if isinstance(found, dict) else (None, None)
    return arguments is not None or name in {spec.name for spec in specs}


def load_json(text: str) -> Any:
    """JSON in which strings may hold real line breaks and tabs.

    Raises:
        ValueError: not JSON, or nested too deeply.
    """
    value, end = scan_json(text, 0)
    if text[end:].strip():
        raise ValueError(f"Extra data: char {end}")
    return value


def scan_json(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, after white space, and where it ends.

    Raises:
        ValueError: not JSON, or nested too deeply.
    """
    while start < len(text) and text[start].isspace():
        start += 1
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant)


def json_call(call: object, specs: Sequence[ToolSpec]) -> ToolCall | InvalidCall:
    """The call that a JSON value represents.

    Accepted besides `{"name": ..., "arguments": {...}}`: the arguments as a string of JSON, `parameters` for
    `arguments`, both within `"function"`, and further keys, such as `id` and `type`.
    """
    if not isinstance(call, dict):
        return InvalidCall('a call must be a JSON object with "name" and "arguments"')
    name, arguments = _name_and_arguments(call)
    return named_call(name, arguments, specs)


def named_call(name: object, arguments: object, specs: Sequence[ToolSpec]) -> ToolCall | InvalidCall:
    """A call by its tool's name, with arguments as an object or as a string that holds one."""
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is None:
        known = [repr(spec.name) for spec in specs]
        which = f"the only tool is {known[0]}" if len(known) == 1 else f"the tools are {', '.join(known)}"
        return InvalidCall(f"there is no tool named {name!r}; {which}")
    if isinstance(arguments, str):
        try:
            arguments = load_json(arguments)
        except ValueError as error:
            return InvalidCall(f'"arguments" must be an object, and this string is not valid JSON ({error})')
    return spec.call(arguments)


def _name_and_arguments(call: dict[str, Any]) -> tuple[Any, Any]:
    function = call.get("function")
    inner = function if isinstance(function, dict) and "name" not in call else call
    name = next((inner[key] for key in ("name", "tool_name") if key in inner), None)
    return name, next((inner[key] for key in ("arguments", "parameters") if inner.get(key) is not None), None)
