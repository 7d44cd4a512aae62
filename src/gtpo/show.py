"""Display of a rollout: text on a terminal, HTML in a notebook. What a model or a tool wrote is always escaped."""

from __future__ import annotations

import html
import sys
from typing import Any

from gtpo import _text
from gtpo._text import for_terminal
from gtpo.types import Observation, ToolCall, Trajectory, Turn

_PRE = "margin:2px 0 6px 12px;padding:6px;white-space:pre-wrap;border-left:3px solid"
_COLORS = {"model": "#4c6ef5", "tool": "#2b8a3e", "failed": "#c92a2a"}


def as_text(trajectory: Trajectory) -> str:
    """The turns with their calls and observations, and why the rollout ended."""
    lines = []
    for number, turn in enumerate(trajectory.turns, start=1):
        lines += [f"{_heading(number, turn)}", _indented(turn.text)]
        lines += [f"  invalid call: {call.reason}" for call in turn.invalid_calls]
        if turn.observation:
            lines += [_seen(turn.observation), _indented(turn.observation.text)]
    return for_terminal("\n".join([*lines, _ending(trajectory)]))


def as_html(trajectory: Trajectory) -> str:
    """The same as HTML, with everything that a model or a tool wrote escaped."""
    parts = ["<div>"]
    for number, turn in enumerate(trajectory.turns, start=1):
        parts += [f"<div><b>{html.escape(_heading(number, turn))}</b></div>", _block(turn.text, "model")]
        parts += [_note(f"invalid call: {call.reason}") for call in turn.invalid_calls]
        if turn.observation:
            failed = any(status != "ok" for status in turn.observation.statuses)
            parts.append(f"<div>{html.escape(_seen(turn.observation))}</div>")
            parts.append(_block(turn.observation.text, "failed" if failed else "tool"))
    return "".join([*parts, f"<div><i>{html.escape(_ending(trajectory))}</i></div></div>"])


def show(thing: Any) -> None:
    """Display an object with its `_repr_html_` in a notebook, or print its `str` on a terminal."""
    if in_notebook():
        from IPython.display import display

        display(thing)
    else:
        _text.show(str(thing))


def in_notebook() -> bool:
    """Whether this process runs the cells of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def _heading(number: int, turn: Turn) -> str:
    calls = [call.name if isinstance(call, ToolCall) else "invalid" for call in turn.calls]
    return f"turn {number}, {len(turn.token_ids)} tokens" + (f", calls: {', '.join(calls)}" if calls else "")


def _seen(observation: Observation) -> str:
    if observation.role == "user":
        return f"user ({observation.wall_s:.2f} s)"
    return f"observation ({', '.join(observation.statuses)}; {observation.wall_s:.2f} s)"


def _ending(trajectory: Trajectory) -> str:
    return f"ended by: {trajectory.stop_reason.value}" + (f" ({trajectory.note})" if trajectory.note else "")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()) or "  (nothing)"


def _block(text: str, kind: str) -> str:
    return f'<pre style="{_PRE} {_COLORS[kind]}">{html.escape(text)}</pre>'


def _note(text: str) -> str:
    return f'<div style="color:{_COLORS["failed"]};margin-left:12px">{html.escape(text)}</div>'
