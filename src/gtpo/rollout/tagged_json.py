"""The format `tool_call`: JSON in `<tool_call>` tags, as in the chat templates of Qwen and Hermes.

`renderers` reads these tags too, by token id. But it takes a tag within a string of code for the end of the call, and
accepts none of the other ways to write the JSON that `gtpo.rollout.call_syntax.json_call` accepts. So calls of the
families that use these tags are read here, also with `native`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gtpo.rollout.call_syntax import (
    CLOSE_THOUGHT,
    OPEN_THOUGHT,
    foreign_call,
    joined,
    json_call,
    scan_json,
    thought_end,
)
from gtpo.rollout.tool_spec import PYTHON, ToolSpec
from gtpo.types import InvalidCall, ToolCall

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TAG = re.compile(f"{_OPEN}|{_CLOSE}|{OPEN_THOUGHT}|{CLOSE_THOUGHT}")
_STRING_OR_TAG = re.compile(rf'"(?:[^"\\]|\\.)*"|{_OPEN}|{_CLOSE}', re.DOTALL)
_FENCE_OPEN, _FENCE_CLOSE = re.compile(r"\s*```(?:json)?\s*"), re.compile(r"\s*```")
EXPECTED = '<tool_call>{"name": ..., "arguments": {...}}</tool_call>'


def read_tagged_calls(text: str, specs: Sequence[ToolSpec]) -> tuple[ToolCall | InvalidCall, ...]:
    """The calls of a turn's text, valid and invalid, in order."""
    calls: list[ToolCall | InvalidCall] = []
    at, thought = 0, False
    while tag := _TAG.search(text, at):
        at = tag.end()
        if tag[0] == OPEN_THOUGHT:
            at, thought = _draft_end(text, at), True
        elif tag[0] == CLOSE_THOUGHT:
            if not thought:  # it ends a thought that began before the text
                calls, thought = [], True
        elif tag[0] == _CLOSE:
            calls.append(InvalidCall(f"a {_CLOSE} has no {_OPEN} before it"))
        else:
            call, at = _read_call(text, at, specs)
            calls.append(call)
    return tuple(calls) or foreign_call(text, EXPECTED, specs, own=_OPEN)


def _draft_end(text: str, at: int) -> int:
    """Where the thought ends that is open at `at`. Whole drafts of calls in it are skipped."""
    while (opening := text.find(_OPEN, at)) >= 0 and opening < text.find(CLOSE_THOUGHT, at):
        at = _whole_call(text, opening + len(_OPEN))[1] or opening + len(_OPEN)
    return thought_end(text, at)


def _read_call(text: str, start: int, specs: Sequence[ToolSpec]) -> tuple[ToolCall | InvalidCall, int]:
    """The call whose tag was opened just before `start`, and where to read on."""
    value, end = _whole_call(text, start)
    if end is not None:
        return json_call(value, specs), end
    stop, closed = _body_end(text, start)
    if not closed and stop < len(text):
        return InvalidCall(f"a {_OPEN} was opened inside another one that was not closed"), stop
    if not closed:
        return InvalidCall(f"the {_OPEN} was not closed with {_CLOSE}"), stop
    body = text[start:stop]
    fence = _FENCE_OPEN.match(body)
    try:
        _, end_of_value = scan_json(body, fence.end() if fence else 0)
        error = f"Extra data: char {end_of_value}"
    except ValueError as found:
        error = str(found)
    return InvalidCall(
        f"the text between {_OPEN} and {_CLOSE} is not valid JSON ({error}); write {EXPECTED}"
    ), stop + len(_CLOSE)


def _whole_call(text: str, start: int) -> tuple[Any, int | None]:
    """The JSON value from `start` on and the end of the closing tag after it; no end if it is not whole."""
    fence = _FENCE_OPEN.match(text, start)
    try:
        value, end = scan_json(text, fence.end() if fence else start)
    except ValueError:
        return None, None
    if fence:
        closing = _FENCE_CLOSE.match(text, end)
        end = closing.end() if closing else end
    while end < len(text) and text[end].isspace():
        end += 1
    return value, end + len(_CLOSE) if text.startswith(_CLOSE, end) else None


def _body_end(text: str, start: int) -> tuple[int, bool]:
    """Where the body of a call that can't be read ends, and whether it has a closing tag.

    Tags within strings don't count, unless quotes don't match; of several closing tags before the next call, the last
    one counts.
    """
    last: int | None = None
    for match in _STRING_OR_TAG.finditer(text, start):
        if match[0] == _OPEN and last is None:
            return match.start(), False
        if match[0] == _OPEN:
            break
        if match[0] == _CLOSE:
            last = match.start()
    if last is None:
        last = text.find(_CLOSE, start)
    return (len(text), False) if last < 0 else (last, True)


@dataclass(frozen=True)
class ToolCallFormat:
    """JSON in `<tool_call>` tags; the chat template renders the tools, results are `tool` messages."""

    specs: tuple[ToolSpec, ...] = (PYTHON,)
    name = "tool_call"

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The schemas, for the chat template."""
        return [spec.schema for spec in self.specs] or None

    def usage(self, spec: ToolSpec) -> str:
        """See `ToolFormat.usage`."""
        return f"You can {spec.ability} with the tool `{spec.name}`; {spec.note}".strip("; ")

    def parse(self, text: str) -> tuple[ToolCall | InvalidCall, ...]:
        """See `ToolFormat.parse`."""
        return read_tagged_calls(text, self.specs) if self.specs else ()

    def observation_messages(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """One `tool` message per call."""
        return [{"role": "tool", **self._sender, "content": result} for result in results]

    @property
    def _sender(self) -> dict[str, str]:
        """With several tools the messages name none: which tool answered is not known here."""
        return {"name": self.specs[0].name} if len(self.specs) == 1 else {}

    def escape(self, result: str) -> str:
        """See `ToolFormat.escape`."""
        return result.replace("</tool_response>", "<\\/tool_response>")

    def render_call(self, argument: str, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_call`."""
        call = json.dumps({"name": spec.name, "arguments": spec.arguments(argument)}, ensure_ascii=False)
        return f"{_OPEN}\n{call}\n{_CLOSE}"

    def render_turn(self, text: str, argument: str | None = None, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_turn`."""
        return joined(text, "" if argument is None else self.render_call(argument, spec))
