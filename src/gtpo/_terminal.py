"""Progress and tables of a running command: rich output on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich import box, progress
from rich.console import Console
from rich.table import Column, Table

from gtpo._text import for_terminal, say


def is_terminal() -> bool:
    """Whether messages, which go to stderr, go to a terminal."""
    return sys.stderr.isatty()


class Progress:
    """Progress of a command: a bar on a terminal; elsewhere one line every few seconds, whatever the rate of updates.

    Lines come every 5 seconds at first and every minute after an hour, so that the log of a long run stays short. If
    the terminal hangs up, the command continues without progress output.

    Args:
        label: text before the bar.
        total: number of units in all.
        unit: what is counted, in plural, such as "steps".
        enabled: False shows nothing except what is passed to `write`.
        done: number of units that are already done.
    """

    def __init__(self, label: str, total: int, unit: str, *, enabled: bool = True, done: int = 0):
        self._what = f"{label}: {{}}/{total} {unit}"
        self._total, self._first, self._done, self._note = total, done, done, ""
        self._enabled = enabled
        self._begun = self._shown_at = time.monotonic()
        self._bar = _bar() if enabled and is_terminal() else None
        if self._bar is not None:
            self._task = self._bar.add_task(label, total=total, completed=done, note="")
            self._bar.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def update(self, done: int, note: str = "") -> None:
        """Set the number of units done, and a short note."""
        self._done, self._note = done, note
        now = time.monotonic()
        if not self._enabled or now - self._shown_at < self._wait(now):
            return
        self._shown_at = now
        self._show()

    def write(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.console.print(for_terminal(text), markup=False, highlight=False)
            else:
                say(text)

    def close(self) -> None:
        """Show the progress one last time."""
        if self._enabled:
            self._show()
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()
        self._enabled, self._bar = False, None

    def _wait(self, now: float) -> float:
        """Seconds between two lines, or two drawings of the bar."""
        return 0.1 if self._bar is not None else min(max(5.0, (now - self._begun) / 60), 60.0)

    def _show(self) -> None:
        with contextlib.suppress(OSError):
            self._draw()

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=self._note, refresh=True)
            return
        spent = time.monotonic() - self._begun
        new = self._done - self._first
        left = (
            f", {_clock(spent / new * (self._total - self._done))} left" if new > 0 and self._done < self._total else ""
        )
        note = f", {self._note}" if self._note else ""
        say(f"{self._what.format(self._done)}, {_clock(spent)} elapsed{left}{note}")


def _bar() -> progress.Progress:
    """A bar that only `update` draws: a drawing thread could hold its lock at the moment when a process is forked."""
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        console=Console(stderr=True),
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
        expand=True,
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def show_table(rows: Sequence[Sequence[str]], *, to: Any = None) -> None:
    """Print a table whose first row is its header: ruled on a terminal, aligned plain text elsewhere.

    Args:
        rows: cells; a column whose cells below the header are all numbers is right-aligned.
        to: a stream; stderr by default.
    """
    stream = sys.stderr if to is None else to
    if not stream.isatty():
        print(for_terminal(aligned(rows)), file=stream, flush=True)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, cells in zip(rows[0], zip(*rows[1:], strict=True), strict=True):
        table.add_column(title, justify="right" if all(map(_is_number, cells)) else "left")
    for row in rows[1:]:
        table.add_row(*map(for_terminal, row))
    Console(file=stream, highlight=False, markup=False).print(table)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table as plain text, columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True
