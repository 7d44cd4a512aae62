"""Tool-call syntaxes: how calls are written in a turn's text, which calls are invalid, and how results are returned.

A call is *invalid* (docs/algorithm.md, "Turn rewards") if it can't be carried out as a call: unclosed or malformed, in
another family's syntax, of an unknown tool, with missing or surplus arguments, or with empty code. Code that runs and
raises is a valid call. Calls in thoughts are drafts and do not count. A format without tools finds no calls at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gtpo.errors import ConfigError
from gtpo.rollout.fenced import FencedFormat
from gtpo.rollout.tagged_json import ToolCallFormat
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
        """Return the chat messages with the (escaped) results of a turn's calls, in order."""
        ...

    def escape(self, result: str) -> str:
        """Return a result in which the mark that closes an observation can't occur."""
        ...

    def render_call(self, argument: str, spec: ToolSpec = PYTHON) -> str:
        """Write a call as the model should write it, given its first argument: the inverse of `parse`."""
        ...

    def render_turn(self, text: str, argument: str | None = None, spec: ToolSpec = PYTHON) -> str:
        """Write a whole turn as the model should write it after a prompt: some text and, if given, a call."""
        ...


FORMATS: dict[str, type[ToolCallFormat] | type[FencedFormat]] = {
    kind.name: kind for kind in (ToolCallFormat, FencedFormat)
}
"""The tool-call formats by name, as `--tool_format` takes them."""


def check_tool_format(name: str) -> None:
    """Check that `name` can be used as a tool format: `auto`, `native`, one of `FORMATS`, or a family.

    Raises:
        ConfigError: it can't; the message lists the names that can.
    """
    if name in ("auto", "native") or name in FORMATS:
        return
    from gtpo.rollout.native import FAMILIES  # loads the library `renderers`, which takes most of a second

    if name not in FAMILIES:
        known = ", ".join(("auto", "native", *sorted(FORMATS), *FAMILIES))
        raise ConfigError(f"unknown tool format {name!r}; known: {known}")


def get_format(name: str, specs: Sequence[ToolSpec] = (PYTHON,)) -> ToolFormat:
    """Return the format of that name for these tools; raises ConfigError naming the known ones."""
    try:
        kind = FORMATS[name]
    except KeyError:
        raise ConfigError(f"unknown tool format {name!r}; known: {', '.join(sorted(FORMATS))}") from None
    return kind(tuple(specs))
