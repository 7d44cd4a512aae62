"""What the `ToolFormat`s have in common whose calls and results are framed by the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gtpo.rollout.tool_spec import ToolSpec


class TemplateFormat:
    """How tools are described, and results returned, if the chat template or its renderer writes the rest."""

    specs: tuple[ToolSpec, ...]

    def usage(self, spec: ToolSpec) -> str:
        """See `ToolFormat.usage`. The template itself says how calls are written."""
        return f"You can {spec.ability} with the tool `{spec.name}`; {spec.note}".strip("; ")

    def observation_messages(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """One `tool` message per call."""
        sender = {"name": self.specs[0].name} if len(self.specs) == 1 else {}
        return [{"role": "tool", **sender, "content": result} for result in results]

    def escape(self, result: str) -> str:
        """See `ToolFormat.escape`. The template's marks are special tokens, which no result contains."""
        return result
