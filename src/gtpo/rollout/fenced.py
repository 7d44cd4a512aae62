"""The format `fenced`: a block that opens with a line ```` ```python ```` and closes with a line ```` ``` ````.

It needs no help from the chat template, so it works with any chat model. Blocks are read as in CommonMark, and as
models write them: with fences of backticks or tildes, labels in any case and under the usual names of the language, a
title or attributes after the label, and indented (the code is dedented). A fence within an open triple-quoted string of
Python is part of the code. Blocks in a thought or in `<answer>` tags are not calls.
"""

from __future__ import annotations

import io
import re
import textwrap
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gtpo.errors import ConfigError
from gtpo.rollout.call_syntax import CLOSE_THOUGHT, OPEN_THOUGHT, foreign_call, joined, thought_end
from gtpo.rollout.tool_spec import PYTHON, ToolSpec
from gtpo.types import InvalidCall, ToolCall

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*(.*)")
_LABEL = re.compile(r"(?:\{[ \t]*\.?)?([^\s`{},:]*)\}?(.*)")
_ATTRIBUTES = re.compile(
    r"""[ \t]*\}?(?:[ \t]*(?:\{[^}]*\}|[\w-]+=(?:"[^"]*"|'[^']*'|\{[^}]*\})
        |(?:title|file|filename|path|name|id|linenos|linenums|hl_lines|startline)=[^\s()]+
        |[.\#][\w-]+|:?[\w./-]+\.\w{1,5}(?=\s|\}|$)|\}))*[ \t]*""",
    re.VERBOSE,
)
_PYTHON = re.compile(r"(?:i?python|py)[\d.]*")
_OUTSIDE = re.compile(f"{OPEN_THOUGHT}|{CLOSE_THOUGHT}|<answer>")
_END_ANSWER = "</answer>"
_OTHER_TOOLS = {"bash", "sh", "shell", "javascript", "js", "c", "cpp", "c++", "java", "r", "sql", "ruby", "go", "rust"}


@dataclass(frozen=True)
class FencedFormat:
    """One fenced block per call; it contains the tool's one text, or is empty. Results are one `user` message."""

    specs: tuple[ToolSpec, ...] = (PYTHON,)
    name = "fenced"
    tools = None

    def __post_init__(self) -> None:
        for spec in self.specs:
            if len(spec.required) > 1 or (spec.required and not isinstance(spec.sample, str)):
                raise ConfigError(
                    f"tool {spec.name!r} does not fit into a fenced block, which holds one text: give it one argument "
                    "of type str, or use --tool_format tool_call with a model whose chat template renders tools"
                )
            if not spec.is_python and _label(spec.name) != (spec.name, ""):
                raise ConfigError(
                    f"tool {spec.name!r} can't be the label of a fenced block, which is read in lower case and up to a "
                    "space; rename it, or use --tool_format tool_call"
                )

    def usage(self, spec: ToolSpec) -> str:
        """See `ToolFormat.usage`."""
        block = "a block" if spec.required else "an empty block"
        return (
            f"You can {spec.ability}: write {block} that starts with a line ```{spec.name} and ends with a line ```, "
            f"and end your turn; you will be shown its output. {spec.note}".strip()
        )

    def parse(self, text: str) -> tuple[ToolCall | InvalidCall, ...]:
        """See `ToolFormat.parse`. Blocks without a label, or labelled as text or output, are not calls."""
        if not self.specs:
            return ()
        calls = _Reader(self.specs, text.replace("\r\n", "\n")).calls()
        blocks = " or ".join(f"a ```{spec.name} block" for spec in self.specs)
        return tuple(calls) or foreign_call(text, blocks, self.specs)

    def observation_messages(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """One `user` message with one output block per call."""
        blocks = [f"```output\n{result}\n```" for result in results]
        return [{"role": "user", "content": "\n".join(blocks)}]

    def escape(self, result: str) -> str:
        """See `ToolFormat.escape`."""
        return result.replace("```", "` ` `")

    def render_call(self, argument: str, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_call`."""
        return f"```{spec.name}\n{argument}\n```" if spec.argument else f"```{spec.name}\n```"

    def render_turn(self, text: str, argument: str | None = None, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_turn`."""
        return joined(text, "" if argument is None else self.render_call(argument, spec))


class _Reader:
    """Reads a text line by line, from where the last block, thought or answer ended."""

    def __init__(self, specs: Sequence[ToolSpec], text: str) -> None:
        self.specs, self.text = specs, text
        self.tools = {label: spec for spec in specs for label in (spec.name, *spec.labels)}
        self.found: list[ToolCall | InvalidCall] = []
        self.thought = False

    def calls(self) -> list[ToolCall | InvalidCall]:
        """The calls, valid and invalid."""
        at = 0
        while at < len(self.text):
            stop = self._line_end(at)
            line = self.text[at:stop]
            if "<" not in line and "```" not in line and "~~~" not in line:
                at = stop + 1
                continue
            tag = _OUTSIDE.search(line)
            if tag and not _FENCE.fullmatch(line[: tag.start()]):
                self._line(line[: tag.start()])
                at = self._past(tag[0], at + tag.end())
            elif (fence := _FENCE.fullmatch(line)) and not _closed_at_once(fence):
                at = self._block(fence, min(stop + 1, len(self.text)))
            else:
                at = self._line(line, stop)
        return self.found

    def _line_end(self, at: int) -> int:
        stop = self.text.find("\n", at)
        return len(self.text) if stop < 0 else stop

    def _past(self, tag: str, at: int) -> int:
        """Where to read on after what a tag opens or ends."""
        if tag == OPEN_THOUGHT:
            self.thought = True
            return thought_end(self.text, at)
        if tag == CLOSE_THOUGHT:
            if not self.thought:  # it ends a thought that began before the text
                self.found, self.thought = [], True
            return at
        end = self.text.find(_END_ANSWER, at)
        return len(self.text) if end < 0 else end + len(_END_ANSWER)

    def _line(self, line: str, stop: int = 0) -> int:
        """Look for fences that are misplaced on a line that opens no block; where to read on."""
        if (fence := _FENCE.fullmatch(line)) and (spec := self.tools.get(_label(fence[2])[0])):
            self._starts_too_early(spec)
        elif inline := next((spec.name for spec in self.specs if f"```{spec.name}" in line), None):
            self.found.append(InvalidCall(f"```{inline} must stand at the start of a line"))
            if line.count("```") % 2:
                return self._closing("```", min(stop + 1, len(self.text)))[1]
        return stop + 1

    def _starts_too_early(self, spec: ToolSpec) -> None:
        what = "code" if spec.is_python else f"the {spec.argument or 'end of the block'}"
        self.found.append(InvalidCall(f"{what} must start on the line after ```{spec.name}"))

    def _block(self, fence: re.Match[str], start: int) -> int:
        """Read the block whose body starts at `start`; where to read on."""
        label, rest = _label(fence[2])
        spec = self.tools.get(label)
        body_end, at, closed = self._closing(fence[1], start, spec)
        if spec and not _ATTRIBUTES.fullmatch(rest):
            self._starts_too_early(spec)
        elif spec and not closed:
            self.found.append(InvalidCall(f"the ```{spec.name} block was not closed with a line ```"))
        elif spec:
            self.found.append(_call(spec, _dedented(self.text[start : max(start, body_end)])))
        elif closed and label in _OTHER_TOOLS | {"python", "search"}:
            blocks = " and ".join(f"```{spec.name}" for spec in self.specs)
            self.found.append(InvalidCall(f"there is no tool for {label}; only {blocks} blocks are run"))
        return at

    def _closing(self, opening: str, start: int, spec: ToolSpec | None = None) -> tuple[int, int, bool]:
        """Where a block's body ends, where to read on, and whether it is closed."""
        first: tuple[int, int, bool] | None = None
        at = start
        while at < len(self.text):
            stop = self._line_end(at)
            line = self.text[at:stop]
            fence = _FENCE.fullmatch(line) if opening[0] in line else None
            if fence and not fence[2].strip() and fence[1].startswith(opening):
                found = (at - 1, stop + 1, True)
                if not (spec and spec.is_python and _within_string(self.text[start : max(start, at - 1)])):
                    return found
                first = first or found
            at = stop + 1
        return first or (len(self.text), len(self.text), False)


def _call(spec: ToolSpec, body: str) -> ToolCall | InvalidCall:
    if spec.required:
        return spec.call(spec.arguments(body))
    if not body.strip():
        return spec.call({})
    if isinstance(spec.sample, str):
        return spec.call(spec.arguments(body))
    return InvalidCall(f"the ```{spec.name} block must be empty")


def _label(info: str) -> tuple[str, str]:
    """The label of a block, without the version of a Python, and what follows it."""
    match = _LABEL.fullmatch(info)
    if not match:
        return "", info
    label = match[1].lower()
    return "python" if _PYTHON.fullmatch(label) else label, match[2]


def _closed_at_once(fence: re.Match[str]) -> bool:
    return fence[1][0] in fence[2] and fence[1] in fence[2]


def _dedented(code: str) -> str:
    first = next((line for line in code.split("\n") if line.strip()), "")
    return textwrap.dedent(code) if first[:1].isspace() else code


def _within_string(code: str) -> bool:
    """Whether code ends inside a triple-quoted string."""
    if "'''" not in code and '"""' not in code:
        return False
    try:
        for _ in tokenize.generate_tokens(io.StringIO(code).readline):
            pass
    except tokenize.TokenError as error:
        return "multi-line string" in str(error) or "triple-quoted string" in str(error)
    except SyntaxError:
        return False
    return False
