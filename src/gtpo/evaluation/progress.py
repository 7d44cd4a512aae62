"""The bar of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from gtpo.evaluation.runner import Progress


@contextmanager
def progress_bar(total: int, label: str, *, enabled: bool = True) -> Iterator[Progress]:
    """A bar on the terminal or in the notebook, with the pass rate so far.

    Args:
        total: samples in all.
        label: stands before it.
        enabled: False shows none.
    """
    with tqdm(total=total, desc=label, dynamic_ncols=True, disable=not enabled) as bar:

        def progress(done: int, of: int, passed: int) -> None:
            bar.update(done - bar.n)
            bar.set_postfix_str(f"pass rate {passed / max(done, 1):.3f}")

        yield progress
