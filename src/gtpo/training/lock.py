"""The lock on a run's directory: no other trainer writes into it, and the directory is checked to stay in place."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from gtpo._lock import locked
from gtpo.errors import RecordError

LOCK = ".lock"
_held: dict[tuple[int, int], RunLock] = {}
"""Locks by device and inode: the stages of one command lock one directory in turn, and share the lock."""


class RunLock:
    """Holds a directory for this process. If taken several times, it is held until it is released as often.

    Args:
        run_dir: the directory; created if missing.

    Raises:
        ConfigError: another process holds it.
        RecordError: the directory can't be written.
    """

    def __init__(self, run_dir: str | Path):
        self.run_dir = Path(run_dir).absolute()
        self._key: tuple[int, int] | None = None
        self._holder = _held.get(_identity(self.run_dir / LOCK) or (-1, -1)) or self
        self._times = 0
        self._holder._times += 1
        if self._holder is not self:
            self._key = self._holder._key
            return
        self._stack = ExitStack()
        mend = "wait until it ends, or choose another --run_dir"
        self._stack.enter_context(locked(self.run_dir / LOCK, what=f"the run directory {self.run_dir}", mend=mend))
        self._key = _identity(self.run_dir / LOCK)
        if self._key:
            _held[self._key] = self

    def check(self) -> None:
        """Make sure that the directory is still the one that was locked.

        Raises:
            RecordError: it was deleted, moved or replaced.
        """
        if _identity(self.run_dir / LOCK) != self._key:
            raise RecordError(
                f"{self.run_dir}: was deleted, moved or replaced during the run; nothing more is written. Put it back "
                "and resume with --resume true, or restart the run"
            )

    def release(self) -> None:
        """Release the lock, once every holder in this process has released it."""
        holder = self._holder
        holder._times -= 1
        if holder._times == 0:
            if holder._key:
                _held.pop(holder._key, None)
            holder._stack.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _in_forked_child() -> None:
    _held.clear()


os.register_at_fork(after_in_child=_in_forked_child)
