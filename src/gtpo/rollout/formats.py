r"""Tool-call syntaxes: how a turn's text holds calls, which of them are invalid, and how results are said.

Two formats:

`tool_call` (Qwen, Hermes)
    `<tool_call>{"name": "python", "arguments": {"code": "..."}}</tool_call>`, tools rendered by the chat template,
    results as `tool` messages.
`fenced`
    a block that opens with a line ```` ```python ```` and closes with a line ```` ``` ````; no help from the chat
    template is needed, so it works with any chat model. Results as one `user` message holding an ```` ```output ````
    block a call.

A call is *invalid* (SPEC section 1) if it can't be carried out as a call: unclosed or malformed, an unknown tool,
missing or surplus arguments, empty code. Code that runs and raises is a valid call. Calls inside `<think>` are
drafts, not calls: only what follows the last `</think>` counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gtpo.errors import ConfigError
from gtpo.types import InvalidCall, ToolCall

PYTHON_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Run a Python program and return what it printed and the value of its last expression.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The program to run."}},
            "required": ["code"],
        },
    },
}

_ANSWER = r"When you know the answer, write it in \boxed{} and make no call in that turn."


_AFRESH = "Each run starts afresh."
_KEPT = "Variables are kept from run to run."


class ToolFormat(Protocol):
    """A tool-call syntax."""

    @property
    def name(self) -> str:
        """The name in `FORMATS`."""
        ...

    @property
    def instruction(self) -> str:
        """The default system prompt: tells the model of the tool and of `\\boxed{}`; `{state}` stands for a sentence
        on what a call leaves for the next one.
        """
        ...

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """Tool schemas for the chat template, or None if the template need not know of tools."""
        ...

    def parse(self, text: str) -> tuple[ToolCall | InvalidCall, ...]:
        """Return the calls of one turn's text, valid and invalid, in order; empty if it makes none."""
        ...

    def observation_messages(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """Return the chat messages that tell the (escaped) results of a turn's calls, in order."""
        ...

    def escape(self, result: str) -> str:
        """Return a result in which the mark that closes an observation can't occur."""
        ...

    def render_call(self, code: str) -> str:
        """Write a call as the model should write it: the inverse of `parse`."""
        ...


def _after_thinking(text: str) -> str:
    _, found, tail = text.rpartition("</think>")
    if found:
        return tail
    return "" if "<think>" in text else text


@dataclass(frozen=True)
class ToolCallFormat:
    """JSON in `<tool_call>` tags, as the chat templates of Qwen and Hermes have it."""

    name: str = "tool_call"

    instruction = "Solve the problem step by step. You can run Python with the tool `python`; {state} " + _ANSWER

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The schema of the one tool, for the chat template."""
        return [PYTHON_TOOL]

    def parse(self, text: str) -> tuple[ToolCall | InvalidCall, ...]:
        """See `ToolFormat.parse`."""
        text = _after_thinking(text)
        calls: list[ToolCall | InvalidCall] = []
        pieces = re.split(r"(<tool_call>|</tool_call>)", text)
        body: str | None = None
        for piece in pieces:
            if piece == "<tool_call>":
                if body is not None:
                    calls.append(InvalidCall("a <tool_call> was opened inside another one that was not closed"))
                body = ""
            elif piece == "</tool_call>":
                if body is None:
                    calls.append(InvalidCall("a </tool_call> has no <tool_call> before it"))
                else:
                    calls.append(_parse_json_call(body))
                body = None
            elif body is not None:
                body += piece
        if body is not None:
            calls.append(InvalidCall("the <tool_call> was not closed with </tool_call>"))
        return tuple(calls)

    def observation_messages(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """One `tool` message a call."""
        return [{"role": "tool", "name": "python", "content": result} for result in results]

    def escape(self, result: str) -> str:
        """See `ToolFormat.escape`."""
        return result.replace("</tool_response>", "<\\/tool_response>")

    def render_call(self, code: str) -> str:
        """See `ToolFormat.render_call`."""
        call = json.dumps({"name": "python", "arguments": {"code": code}}, ensure_ascii=False)
        return f"<tool_call>\n{call}\n</tool_call>"


def _parse_json_call(body: str) -> ToolCall | InvalidCall:
    try:
        call = json.loads(body)
    except (json.JSONDecodeError, RecursionError) as error:
        return InvalidCall(f"the text between <tool_call> and </tool_call> is not valid JSON ({error})")
    if not isinstance(call, dict):
        return InvalidCall('a call must be a JSON object with "name" and "arguments"')
    name, arguments = call.get("name"), call.get("arguments")
    if name != "python":
        return InvalidCall(f"there is no tool named {name!r}; the only tool is 'python'")
    surplus = sorted(set(call) - {"name", "arguments"})
    if surplus:
        return InvalidCall(f'a call has only "name" and "arguments", not {", ".join(map(repr, surplus))}')
    if not isinstance(arguments, dict):
        return InvalidCall('"arguments" must be an object with one entry, "code"')
    surplus = sorted(set(arguments) - {"code"})
    if surplus:
        return InvalidCall(f"'python' takes one argument, \"code\", not {', '.join(map(repr, surplus))}")
    code = arguments.get("code")
    if code is None:
        return InvalidCall('the argument "code" is missing')
    if not isinstance(code, str):
        return InvalidCall('the argument "code" must be a string')
    if not code.strip():
        return InvalidCall("the code is empty")
    return ToolCall(code)


_FENCE = re.compile(r"[ \t]*(`{3,})[ \t]*([^\s`]*)[ \t]*(.*)")
_PYTHON_LABELS = {"python", "py", "python3"}
_OTHER_TOOLS = {"bash", "sh", "shell", "javascript", "js", "c", "cpp", "c++", "java", "r", "sql", "ruby", "go", "rust"}


@dataclass(frozen=True)
class FencedFormat:
    """A fenced python block; works with any chat template."""

    name: str = "fenced"

    instruction = (
        "Solve the problem step by step. You can run Python: write a block that starts with a line ```python and "
        "ends with a line ```, and end your turn; you will be shown its output. {state} " + _ANSWER
    )
    tools = None

    def parse(self, text: str) -> tuple[ToolCall | InvalidCall, ...]:
        """See `ToolFormat.parse`. Blocks without a label, or labelled as text or output, are no calls."""
        calls: list[ToolCall | InvalidCall] = []
        label: str | None = None
        ticks = ""
        lines: list[str] = []
        for line in _after_thinking(text).replace("\r\n", "\n").split("\n"):
            fence = _FENCE.fullmatch(line)
            if label is None:
                if fence:
                    ticks, label, lines = fence[1], fence[2].lower(), []
                    if label in _PYTHON_LABELS and fence[3]:
                        calls.append(InvalidCall("code must start on the line after ```python"))
                        label = None if "```" in fence[3] else "(malformed)"
                elif "```python" in line:
                    calls.append(InvalidCall("```python must stand at the start of a line"))
                    label = "(malformed)" if line.count("```") % 2 else None
                    ticks, lines = "```", []
            elif fence and not fence[2] and len(fence[1]) >= len(ticks):
                calls += _block_calls(label, "\n".join(lines))
                label = None
            else:
                lines.append(line)
        if label in _PYTHON_LABELS:
            calls.append(InvalidCall("the ```python block was not closed with a line ```"))
        return tuple(calls)

    def observation_messages(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """One `user` message with an output block a call."""
        blocks = [f"```output\n{result}\n```" for result in results]
        return [{"role": "user", "content": "\n".join(blocks)}]

    def escape(self, result: str) -> str:
        """See `ToolFormat.escape`."""
        return result.replace("```", "` ` `")

    def render_call(self, code: str) -> str:
        """See `ToolFormat.render_call`."""
        return f"```python\n{code}\n```"


def _block_calls(label: str, code: str) -> list[ToolCall | InvalidCall]:
    if label in _PYTHON_LABELS:
        return [ToolCall(code) if code.strip() else InvalidCall("the code is empty")]
    if label in _OTHER_TOOLS:
        return [InvalidCall(f"there is no tool for {label}; only ```python blocks are run")]
    return []


FORMATS: dict[str, ToolFormat] = {fmt.name: fmt for fmt in (ToolCallFormat(), FencedFormat())}


def get_format(name: str) -> ToolFormat:
    """Return the format of that name; raises ConfigError naming the known ones."""
    try:
        return FORMATS[name]
    except KeyError:
        raise ConfigError(f"unknown tool format {name!r}; known: {', '.join(sorted(FORMATS))}") from None


def system_prompt_for(tool_format: ToolFormat, setting: str | None, *, keeps_state: bool = False) -> str | None:
    """The system prompt that a setting means: None the format's own instruction, "" none at all.

    Args:
        tool_format: the tool-call syntax.
        setting: as the user gave it.
        keeps_state: whether a call finds what earlier ones defined, which the instruction then says.
    """
    if setting is not None:
        return setting or None
    return tool_format.instruction.replace("{state}", _KEPT if keeps_state else _AFRESH)
