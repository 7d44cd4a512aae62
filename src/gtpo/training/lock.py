"""A lock on a run's directory, so that no two trainers write into it; the kernel lifts it when its process ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from gtpo.errors import ConfigError, RecordError

LOCK = ".lock"
_NETWORK = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "lustre",
    "gpfs",
    "ceph",
    "beegfs",
    "glusterfs",
    "9p",
    "afs",
    "fuse",
)
_held: dict[tuple[int, int], RunLock] = {}
"""By device and inode: a command that runs stages in one directory takes the lock for all of them."""


class RunLock:
    """Holds a directory for this process. Taken again by the same process, it is held until it is released as often.

    Args:
        run_dir: the directory; it has to be there.
        say: told if the lock may not reach other machines.

    Raises:
        ConfigError: another process holds it.
        RecordError: the directory can't be written.
    """

    def __init__(self, run_dir: str | Path, say: Callable[[str], None] | None = None):
        self.run_dir = Path(run_dir).absolute()
        self._fd = -1
        self._held_by_me: RunLock | None = None
        self._times = 1
        path = self.run_dir / LOCK
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise RecordError(f"{path}: can't be written: {error.strerror}; choose another --run_dir") from error
        self._key = _identity(os.fstat(fd))
        if self._key in _held:
            os.close(fd)
            self._held_by_me = _held[self._key]
            self._held_by_me._times += 1
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(fd)
            os.close(fd)
            raise ConfigError(
                f"{self.run_dir}: another trainer is at it{holder}: let it end, or choose another --run_dir"
            ) from None
        except OSError as error:
            if say:
                say(f"{self.run_dir}: this file system has no locks ({error.strerror}); start no second trainer here")
        else:
            if say and (kind := file_system_of(self.run_dir)) in _NETWORK:
                say(
                    f"{self.run_dir} is on a network file system ({kind}): whether its lock keeps trainers on other "
                    "machines out depends on how it is mounted"
                )
        self._fd = fd
        _held[self._key] = self
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")})
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(fd, 0)
            os.pwrite(fd, holder.encode(), 0)

    def check(self) -> None:
        """Make sure that the directory is still the one that was locked.

        Raises:
            RecordError: it was deleted, moved or replaced.
        """
        try:
            there = _identity(os.stat(self.run_dir / LOCK))
        except OSError:
            there = None
        if there != self._key:
            raise RecordError(
                f"{self.run_dir}: was deleted, moved or replaced while the run was under way; nothing more is written. "
                "Put it back and go on with --resume true, or start the run anew"
            )

    def release(self) -> None:
        """Let others in, once whoever took it in this process has released it."""
        holder = self._held_by_me or self
        holder._times -= 1
        if holder._times == 0:
            _held.pop(holder._key, None)
            os.close(holder._fd)


def file_system_of(path: Path) -> str:
    """The type of the file system that a path lies on, as /proc/mounts names it; empty if that is unknown."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    resolved = str(path.resolve())
    for fields in (line.split() for line in lines):
        place = fields[1].encode().decode("unicode_escape")
        inside = resolved == place or resolved.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best):
            best, kind = place, fields[2]
    return "fuse" if kind.startswith("fuse.") else kind


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _holder(fd: int) -> str:
    try:
        found = json.loads(os.pread(fd, 4096, 0))
        return f" (process {found['pid']} on {found['host']} since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _in_forked_child() -> None:
    """A child that is forked and not started anew must not keep the lock when its parent dies."""
    for lock in _held.values():
        os.close(lock._fd)
    _held.clear()


os.register_at_fork(after_in_child=_in_forked_child)
