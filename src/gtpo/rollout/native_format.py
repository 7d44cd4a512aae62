"""The calls of a family of the library `renderers`, as a `ToolFormat`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gtpo.rollout.encoding import Calls
from gtpo.rollout.tool_spec import PYTHON, ToolSpec

if TYPE_CHECKING:
    from gtpo.rollout.native import RendererEncoder

_TEXT = "MODEL-TEXT"


class NativeFormat:
    """The calls of a family, written and read by its renderer: the `ToolFormat` of a `RendererEncoder`."""

    name = "native"

    def __init__(self, encoder: RendererEncoder, specs: tuple[ToolSpec, ...]) -> None:
        self._encoder, self.specs = encoder, specs

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The schemas, for the renderer."""
        return [spec.schema for spec in self.specs] or None

    def usage(self, spec: ToolSpec) -> str:
        """See `ToolFormat.usage`. How calls are written, the family's prompt says itself."""
        return f"You can {spec.ability} with the tool `{spec.name}`; {spec.note}".strip("; ")

    def parse(self, text: str) -> Calls:
        """See `ToolFormat.parse`."""
        return self._encoder.parse(text)

    def observation_messages(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """One `tool` message a call."""
        sender = {"name": self.specs[0].name} if len(self.specs) == 1 else {}
        return [{"role": "tool", **sender, "content": result} for result in results]

    def escape(self, result: str) -> str:
        """See `ToolFormat.escape`. Marks of the family are special tokens, which no result holds."""
        return result

    def render_call(self, argument: str, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_call`."""
        whole, plain = self._encoder.written_turn("", argument, spec), self._encoder.written_turn(_TEXT)
        return whole.removeprefix(plain.partition(_TEXT)[0]).strip("\n")

    def render_turn(self, text: str, argument: str | None = None, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_turn`."""
        return self._encoder.written_turn(text, argument, None if argument is None else spec)
