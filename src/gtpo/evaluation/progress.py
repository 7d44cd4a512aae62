"""The progress of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gtpo import _terminal
from gtpo.evaluation.runner import Progress


@contextmanager
def progress_bar(total: int, label: str, *, enabled: bool = True) -> Iterator[Progress]:
    """Shows the progress of an evaluation, with the pass rate so far.

    Args:
        total: number of samples in all.
        label: text before the bar.
        enabled: False shows nothing.
    """
    with _terminal.Progress(label, total, "rollouts", enabled=enabled) as shown:

        def progress(done: int, of: int, passed: int) -> None:
            shown.update(done, f"pass rate {passed / max(done, 1):.3f}")

        yield progress
