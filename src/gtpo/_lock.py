"""A lock on what one process at a time may write: a training run's directory, an evaluation's output.

The lock is a kernel lock (flock) on a small file, so it is released when its process ends in any way, and nothing has
to be cleaned up after a kill. The file names the holder of the lock, for the message. It is removed at the end, while
the lock is still held; whoever takes a lock checks that the file it has locked is still the one of that name.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gtpo.errors import ConfigError, RecordError

_LOG = logging.getLogger(__name__)
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_TAKEN = {errno.EAGAIN, errno.EACCES}
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "ceph", "beegfs", "glusterfs", "9p", "afs", "fuse")
_held: set[int] = set()


@contextmanager
def locked(path: str | Path, *, what: str, mend: str) -> Iterator[None]:
    """Hold a lock for as long as the context lasts. Forked children and started programs do not keep it.

    A file system without locks, and a network file system, cause a warning; on the former nothing is locked.

    Args:
        path: path of the lock file, such as `run/.lock`; its folder is created.
        what: what is locked, for the message, such as "the run directory runs/7".
        mend: what to do if another process holds the lock, for the message.

    Raises:
        ConfigError: another process holds the lock; the message says which.
        RecordError: the file can't be created.
    """
    path = Path(path)
    descriptor = _take(path, what, mend)
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        with suppress(OSError):
            if _is_at(descriptor, path):
                path.unlink()
        with suppress(OSError):  # said aloud: a child that was forked in C has the descriptor too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _take(path: Path, what: str, mend: str) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RecordError(f"{path}: can't be created ({error.strerror}); it is the lock on {what}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise ConfigError(f"{what} is in use by another process{holder}: {mend}") from None
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise RecordError(f"{path}: can't be locked ({error.strerror})") from error
            _LOG.warning("%s: this file system has no locks; make sure that no other process writes to %s", path, what)
        else:
            if (kind := file_system_of(path)) in _NETWORK:
                _LOG.warning("%s: on a network file system (%s), so other machines may not see the lock", path, kind)
        if _is_at(descriptor, path):
            with suppress(OSError):  # a full disk keeps nobody out: the lock is not in the contents
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            return descriptor
        os.close(descriptor)  # its holder has removed it in the meantime


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f" (process {int(found['pid'])} on {str(found['host'])[:64]!r})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def file_system_of(path: Path) -> str:
    """The type of the file system that a path is on, as /proc/mounts names it; empty if unknown."""
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


def _in_forked_child() -> None:
    """The lock ends with the process that took it, even if a child that it forked lives on."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_in_forked_child)
