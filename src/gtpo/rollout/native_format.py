"""The calls of a family of the library `renderers`, as a `ToolFormat`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gtpo.rollout.encoding import Calls
from gtpo.rollout.template_format import TemplateFormat
from gtpo.rollout.tool_spec import PYTHON, ToolSpec

if TYPE_CHECKING:
    from gtpo.rollout.native import RendererEncoder

_TEXT = "MODEL-TEXT"


class NativeFormat(TemplateFormat):
    """The calls of a family, written and read by its renderer: the `ToolFormat` of a `RendererEncoder`."""

    name = "native"

    def __init__(self, encoder: RendererEncoder, specs: tuple[ToolSpec, ...]) -> None:
        self._encoder, self.specs = encoder, specs

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The schemas, for the renderer."""
        return [spec.schema for spec in self.specs] or None

    def parse(self, text: str) -> Calls:
        """See `ToolFormat.parse`."""
        return self._encoder.parse(text)

    def render_call(self, argument: str, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_call`."""
        whole, plain = self._encoder.written_turn("", argument, spec), self._encoder.written_turn(_TEXT)
        return whole.removeprefix(plain.partition(_TEXT)[0]).strip("\n")

    def render_turn(self, text: str, argument: str | None = None, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_turn`."""
        return self._encoder.written_turn(text, argument, None if argument is None else spec)
