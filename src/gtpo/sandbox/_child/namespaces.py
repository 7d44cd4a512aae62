"""Namespaces and a new root directory for a server, created once when it starts.

The new root contains read-only views of the Python installation and the system's libraries. Only the contents of
`WORK` can be written or changed. There is no `/proc`. `WORK` is a file system in memory with a limit on its size and
its number of files. The programs of a server use one such file system one after the other; it is replaced by a new one
as soon as a program has touched it (`Work`). Each session has its own, in a separate mount namespace where no other
process can name it (`own_work`). Root creates the namespaces directly; other users through a user namespace, if the
system allows it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import sys
from collections.abc import Iterator

from . import kernel

WORK = "/box/work"
_WORK_OPTIONS = b"size=64m,nr_inodes=4096,mode=0700"
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_NEW_REST = 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x00020000  # pid, net, ipc, uts, mount
_READ_ONLY, _NO_SUID, _NO_DEV, _NO_EXEC, _NO_ATIME, _BIND, _RECURSIVE, _PRIVATE = (
    1,
    2,
    4,
    8,
    1024,
    4096,
    1 << 14,
    1 << 18,
)
_DETACH = 2
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "arm64": 41}
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")


def enter(inherited: int) -> int:
    """Moves the server into its own namespaces; returns its process id as seen from outside.

    It returns in a new process, the first of a pid namespace. The caller's original process remains, with only
    the standard descriptors; it ends when the new one does, and the new one ends when it is killed.

    Args:
        inherited: descriptor of the channel, which the original process closes.

    Raises:
        OSError: the system does not allow it; the calling process is unchanged.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        _unshare(_NEW_REST)
    except PermissionError:
        _unshare(_NEW_REST | _NEW_USER)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        _stay_behind(pid, tell, inherited)
    os.close(tell)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    outside = os.read(told, 4)
    os.close(told)
    if len(outside) < 4:
        os._exit(1)
    return int(struct.unpack("=i", outside)[0])


def _unshare(flags: int) -> None:
    kernel.checked(kernel.libc().unshare(ctypes.c_int(flags)), "unshare")


def _stay_behind(pid: int, tell: int, inherited: int) -> None:
    """The process that remains in the old pid namespace; it only waits for the server."""
    with contextlib.suppress(BaseException):
        os.write(tell, struct.pack("=i", pid))
        os.close(tell)
        os.close(inherited)
        os.closerange(3, 4096)
        os.waitpid(pid, 0)
    os._exit(0)


def new_root(readable: list[str]) -> None:
    """Replaces the root directory of this mount namespace by an entirely read-only one.

    Args:
        readable: files and directories that appear at their own places, read-only.

    Raises:
        OSError: a mount was refused.
    """
    root = _mount_point([*readable, *DEVICES, "/proc"])
    _mount("none", "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, b"tmpfs", _NO_SUID | _NO_DEV, b"size=4m,mode=0755")
    for path in readable:
        _show(path, root)
    for path in DEVICES:
        _bind(path, root)
        _set_read_only(root + path, devices=True)  # a device can be written to, but not changed
    os.makedirs(root + WORK, mode=0o755)
    _set_read_only(root)
    os.chdir(root)
    kernel.syscall(_PIVOT_ROOT[os.uname().machine], b".", b".")
    _unmount(".")
    os.chdir("/")


class Work:
    """The file system over `WORK` of a server, which needs CAP_SYS_ADMIN; its programs use it one after the other."""

    def __init__(self) -> None:
        self._mount()

    def untouched(self) -> bool:
        """Whether it is unchanged since it was created: empty, with its original attributes."""
        return self._state() == self._first

    def renew(self) -> None:
        """Replaces it by a new one.

        Raises:
            OSError: the system refused; there may be none now.
        """
        os.close(self._fd)
        _unmount(WORK)
        self._mount()

    def _mount(self) -> None:
        _mount_work()
        self._fd = os.open(WORK, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._first = self._state()

    def _state(self) -> tuple[object, ...]:
        attributes: list[str] = []
        with contextlib.suppress(OSError):  # not on tmpfs before Linux 6.6
            attributes = os.listxattr(self._fd)
        of, whole = os.fstat(self._fd), os.fstatvfs(self._fd)
        times = (of.st_mtime_ns, of.st_ctime_ns, of.st_atime_ns)
        return (of.st_mode, of.st_uid, of.st_gid, of.st_nlink, times, attributes, whole.f_bfree, whole.f_ffree)


@contextlib.contextmanager
def passing_work() -> Iterator[None]:
    """Mounts a file system over `WORK` for the warm-up; it is removed before rules for `WORK` are created."""
    _mount_work()
    try:
        yield
    finally:
        _unmount(WORK)


def own_work() -> None:
    """Gives the calling process a file system over `WORK` that no other process sees; needs CAP_SYS_ADMIN.

    It ends with the process.

    Raises:
        OSError: the system refused, for a lack of memory or of namespaces.
    """
    _unshare(_NEW_MOUNTS)
    _unmount(WORK)
    _mount_work()


def _mount_work() -> None:
    _mount("none", WORK, b"tmpfs", _NO_SUID | _NO_DEV | _NO_EXEC | _NO_ATIME, _WORK_OPTIONS)


def _unmount(path: str) -> None:
    kernel.checked(kernel.libc().umount2(path.encode(), _DETACH), "umount2")


def _mount_point(needed: list[str]) -> str:
    """Returns a directory to build the new root on, one that hides nothing needed; it is unchanged outside."""
    for name in sorted(os.listdir("/")):
        path = f"/{name}"
        if os.path.isdir(path) and not os.path.islink(path) and not any(f"{n}/".startswith(f"{path}/") for n in needed):
            return path
    raise OSError("no directory to build a new root on")


def _show(path: str, root: str) -> None:
    """Makes a path visible under `root`: a symlink as itself, anything else bound read-only."""
    if not os.path.exists(path) or os.path.lexists(root + path):
        return
    if os.path.islink(path):
        os.makedirs(os.path.dirname(root + path), mode=0o755, exist_ok=True)
        os.symlink(os.readlink(path), root + path)
        return
    _bind(path, root)
    _set_read_only(root + path, recursive=True)


def _bind(path: str, root: str) -> None:
    target = root + path
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(path, target, None, _BIND | _RECURSIVE)


def _set_read_only(path: str, recursive: bool = False, devices: bool = False) -> None:
    flags = _READ_ONLY | _NO_SUID | (0 if devices else _NO_DEV)
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
    kernel.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, path.encode(), _AT_RECURSIVE if recursive else 0, attributes, len(attributes)
    )


def _mount(source: str, target: str, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    result = kernel.libc().mount(source.encode(), target.encode(), kind, ctypes.c_ulong(flags), options)
    kernel.checked(result, f"mount on {target}")


def readable_paths(python_path: list[str]) -> list[str]:
    """The paths that a program must be able to read: the interpreter's libraries, packages, shared libraries."""
    wanted = [*_SYSTEM, os.path.join(sys.base_prefix, "lib"), *python_path]
    paths: list[str] = []
    for path in dict.fromkeys(p for w in wanted for p in (os.path.abspath(w), os.path.realpath(w))):
        inside = any(path.startswith(other.rstrip("/") + "/") and not os.path.islink(other) for other in paths)
        if os.path.exists(path) and not inside:
            paths.append(path)
    return paths
