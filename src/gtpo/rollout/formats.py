r"""Tool-call syntaxes: how a turn's text holds calls, which of them are invalid, and how results are said.

Two formats:

`tool_call` (Qwen, Hermes)
    `<tool_call>{"name": "python", "arguments": {"code": "..."}}</tool_call>`, tools rendered by the chat template,
    results as `tool` messages.
`fenced`
    a block that opens with a line ```` ```python ```` (or another tool's name) and closes with a line ```` ``` ````; no
    help from the chat template is needed, so it works with any chat model. The block holds the tool's first required
    argument. Results as one `user` message holding an ```` ```output ```` block a call.

A call is *invalid* (SPEC section 1) if it can't be carried out as a call: unclosed or malformed, an unknown tool,
missing or surplus arguments, empty code. Code that runs and raises is a valid call. Calls inside `<think>` are
drafts, not calls: only what follows the last `</think>` counts. A format without tools knows no calls at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gtpo.errors import ConfigError
from gtpo.rollout.tool_spec import PYTHON, ToolSpec
from gtpo.types import InvalidCall, ToolCall


class ToolFormat(Protocol):
    """A tool-call syntax."""

    @property
    def name(self) -> str:
        """The name in `FORMATS`."""
        ...

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools that can be called."""
        ...

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """Tool schemas for the chat template, or None if the template need not know of tools."""
        ...

    def usage(self, spec: ToolSpec) -> str:
        """Sentences for the system prompt: what the model can do with the tool, and how it calls it."""
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

    def render_call(self, argument: str, spec: ToolSpec = PYTHON) -> str:
        """Write a call as the model should write it, given its first argument: the inverse of `parse`."""
        ...


def _after_thinking(text: str) -> str:
    _, found, tail = text.rpartition("</think>")
    if found:
        return tail
    return "" if "<think>" in text else text


@dataclass(frozen=True)
class ToolCallFormat:
    """JSON in `<tool_call>` tags, as the chat templates of Qwen and Hermes have it."""

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
        if not self.specs:
            return ()
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
                    calls.append(self._json_call(body))
                body = None
            elif body is not None:
                body += piece
        if body is not None:
            calls.append(InvalidCall("the <tool_call> was not closed with </tool_call>"))
        return tuple(calls)

    def _json_call(self, body: str) -> ToolCall | InvalidCall:
        try:
            call = json.loads(body)
        except (json.JSONDecodeError, RecursionError) as error:
            return InvalidCall(f"the text between <tool_call> and </tool_call> is not valid JSON ({error})")
        if not isinstance(call, dict):
            return InvalidCall('a call must be a JSON object with "name" and "arguments"')
        name = call.get("name")
        spec = next((spec for spec in self.specs if spec.name == name), None)
        if spec is None:
            known = [repr(spec.name) for spec in self.specs]
            which = f"the only tool is {known[0]}" if len(known) == 1 else f"the tools are {', '.join(known)}"
            return InvalidCall(f"there is no tool named {name!r}; {which}")
        surplus = sorted(set(call) - {"name", "arguments"})
        if surplus:
            return InvalidCall(f'a call has only "name" and "arguments", not {", ".join(map(repr, surplus))}')
        return spec.call(call.get("arguments"))

    def observation_messages(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """One `tool` message a call."""
        return [{"role": "tool", **self._sender, "content": result} for result in results]

    @property
    def _sender(self) -> dict[str, str]:
        """With several tools the messages name none: which of them answered is not known here."""
        return {"name": self.specs[0].name} if len(self.specs) == 1 else {}

    def escape(self, result: str) -> str:
        """See `ToolFormat.escape`."""
        return result.replace("</tool_response>", "<\\/tool_response>")

    def render_call(self, argument: str, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_call`."""
        call = json.dumps({"name": spec.name, "arguments": {spec.required[0]: argument}}, ensure_ascii=False)
        return f"<tool_call>\n{call}\n</tool_call>"


_FENCE = re.compile(r"[ \t]*(`{3,})[ \t]*([^\s`]*)[ \t]*(.*)")
_OTHER_TOOLS = {"bash", "sh", "shell", "javascript", "js", "c", "cpp", "c++", "java", "r", "sql", "ruby", "go", "rust"}


@dataclass(frozen=True)
class FencedFormat:
    """A fenced block a call; works with any chat template."""

    specs: tuple[ToolSpec, ...] = (PYTHON,)
    name = "fenced"
    tools = None

    def __post_init__(self) -> None:
        for spec in self.specs:
            if spec.parameters[spec.required[0]]["type"] != "string" or len(spec.required) > 1:
                raise ConfigError(
                    f"tool {spec.name!r} does not fit into a fenced block, which holds one text; use tool_call"
                )

    def usage(self, spec: ToolSpec) -> str:
        """See `ToolFormat.usage`."""
        return (
            f"You can {spec.ability}: write a block that starts with a line ```{spec.name} and ends with a line ```, "
            f"and end your turn; you will be shown its output. {spec.note}".strip()
        )

    def parse(self, text: str) -> tuple[ToolCall | InvalidCall, ...]:
        """See `ToolFormat.parse`. Blocks without a label, or labelled as text or output, are no calls."""
        if not self.specs:
            return ()
        tools = {label: spec for spec in self.specs for label in (spec.name, *spec.labels)}
        calls: list[ToolCall | InvalidCall] = []
        label: str | None = None
        ticks = ""
        lines: list[str] = []
        for line in _after_thinking(text).replace("\r\n", "\n").split("\n"):
            fence = _FENCE.fullmatch(line)
            if label is None:
                inline = next((spec.name for spec in self.specs if f"```{spec.name}" in line), None)
                if fence:
                    ticks, label, lines = fence[1], fence[2].lower(), []
                    if label in tools and fence[3]:
                        what = "code" if tools[label].is_python else f"the {tools[label].required[0]}"
                        calls.append(InvalidCall(f"{what} must start on the line after ```{tools[label].name}"))
                        label = None if "```" in fence[3] else "(malformed)"
                elif inline:
                    calls.append(InvalidCall(f"```{inline} must stand at the start of a line"))
                    label = "(malformed)" if line.count("```") % 2 else None
                    ticks, lines = "```", []
            elif fence and not fence[2] and len(fence[1]) >= len(ticks):
                calls += self._block_calls(label, tools, "\n".join(lines))
                label = None
            else:
                lines.append(line)
        if label in tools:
            calls.append(InvalidCall(f"the ```{tools[label].name} block was not closed with a line ```"))
        return tuple(calls)

    def _block_calls(self, label: str, tools: dict[str, ToolSpec], body: str) -> list[ToolCall | InvalidCall]:
        if label in tools:
            return [tools[label].call({tools[label].required[0]: body})]
        if label in _OTHER_TOOLS | {"python", "search"}:
            blocks = " and ".join(f"```{spec.name}" for spec in self.specs)
            return [InvalidCall(f"there is no tool for {label}; only {blocks} blocks are run")]
        return []

    def observation_messages(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """One `user` message with an output block a call."""
        blocks = [f"```output\n{result}\n```" for result in results]
        return [{"role": "user", "content": "\n".join(blocks)}]

    def escape(self, result: str) -> str:
        """See `ToolFormat.escape`."""
        return result.replace("```", "` ` `")

    def render_call(self, argument: str, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_call`."""
        return f"```{spec.name}\n{argument}\n```"


FORMATS: dict[str, type[ToolCallFormat] | type[FencedFormat]] = {
    kind.name: kind for kind in (ToolCallFormat, FencedFormat)
}
"""The tool-call formats by name, as `--tool_format` takes them."""


def get_format(name: str, specs: Sequence[ToolSpec] = (PYTHON,)) -> ToolFormat:
    """Return the format of that name for these tools; raises ConfigError naming the known ones."""
    try:
        kind = FORMATS[name]
    except KeyError:
        raise ConfigError(f"unknown tool format {name!r}; known: {', '.join(sorted(FORMATS))}") from None
    return kind(tuple(specs))
