"""The situations in which a trainer may find itself, made with the kernel's own means, and what holds in them.

- `root`: the machine's root, who may make namespaces.
- `user`: an ordinary user, who may make them through a user namespace of his own.
- `container_root`: root in an ordinary container: no new namespaces, no mounts, few capabilities.
- `container_user`: the same as an ordinary user.
- `plain`: whoever runs this, without a sandbox; the control.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SITUATIONS = ("root", "user", "container_root", "container_user", "plain")
NOBODY = 65534

# chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot,
# mknod, audit_write, setfcap: what Docker leaves to a container's root.
_DOCKER_CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)

_NEW_NAMESPACES = 0x7E020000
_NEWUSER, _NEWNS, _NEWPID, _NEWNET = 0x10000000, 0x00020000, 0x20000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 22, 24, 38
_LANDLOCK_CREATE_RULESET = 444

_ARM = platform.machine() in ("aarch64", "arm64")
_CLONE, _CLONE3 = (220, 435) if _ARM else (56, 435)
# unshare, setns, mount, umount2, pivot_root; then the mount calls whose numbers all processors share.
_REFUSED = (*((97, 268, 40, 39, 41) if _ARM else (272, 308, 165, 166, 155)), *range(428, 434), 442)

_libc = ctypes.CDLL(None, use_errno=True)


def impossible_here(situation: str) -> str:
    """Why this machine's system or user can't come into `situation` at all; "" if there is no such reason."""
    if sys.platform != "linux":
        return "it needs Linux"
    if situation in ("root", "container_root") and os.geteuid() != 0:
        return "it needs root to begin with"
    return ""


def enter(situation: str, needed: Iterable[str]) -> None:
    """Brings the calling process into `situation` for good; an exec should follow.

    Args:
        situation: one of `SITUATIONS`.
        needed: directories that must stay readable, wherever they are.

    Raises:
        OSError: the kernel refused.
    """
    root = os.geteuid() == 0
    as_user = situation in ("user", "container_user")
    if as_user and root:
        _reveal(needed)
    if situation.startswith("container"):
        if not root:
            _call(_libc.prctl(_PR_SET_NO_NEW_PRIVS, *_words(1, 0, 0, 0)))
        _refuse_namespaces()
        if root:
            _keep_capabilities(_DOCKER_CAPABILITIES)
    if as_user and root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def present() -> dict[str, Any]:
    """What the calling process is and may, as the kernel says."""
    seccomp = Path("/proc/self/status").read_text().partition("Seccomp:")[2].split()[0]
    return {
        "uid": os.getuid(),
        "capabilities": _capabilities(),
        "seccomp": int(seccomp),
        "namespaces": _may_make_namespaces(),
        "landlock": max(0, _libc.syscall(_LANDLOCK_CREATE_RULESET, *_words(0, 0, 1))),
    }


def lacking(situation: str, here: dict[str, Any]) -> str:
    """What `situation` should offer and this machine does not; "" if nothing."""
    if situation in ("root", "user") and not here["namespaces"]:
        return "new namespaces are not allowed on this machine"
    if situation.startswith("container") and here["landlock"] < 3:
        return "without namespaces it needs Landlock of Linux 6.2 or newer"
    return ""


def _reveal(needed: Iterable[str]) -> None:
    """Makes `needed` reachable for everybody, in a mount namespace of our own.

    An interpreter below a directory that only root may enter (/root) would leave an ordinary user with nothing
    to run. That directory is covered by an empty one, into which only what is needed is bound.
    """
    below: dict[Path, list[Path]] = {}
    for path in {Path(name).resolve() for name in needed}:
        closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
        if closed:
            below.setdefault(closed[0], []).append(path)
    if not below:
        return
    _call(_libc.unshare(_NEWNS))
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    for top, paths in below.items():
        handles = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in sorted(paths)}
        _mount("none", str(top), "tmpfs", 0, "mode=755")
        for path, handle in handles.items():
            if not path.exists():
                path.mkdir(parents=True)
                _mount(f"/proc/self/fd/{handle}", str(path), "", _MS_BIND | _MS_REC)


def _refuse_namespaces() -> None:
    """A filter in the manner of a container's: namespaces and mounts are refused, the rest is allowed."""
    load, jump_equal, jump_set, end = 0x20, 0x15, 0x45, 0x06
    allow, refuse, unknown = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    steps = [(load, 0, 0, 0)]
    for number in _REFUSED:
        steps += [(jump_equal, 0, 1, number), (end, 0, 0, refuse)]
    steps += [(jump_equal, 0, 1, _CLONE3), (end, 0, 0, unknown)]
    steps += [(jump_equal, 1, 0, _CLONE), (end, 0, 0, allow)]
    steps += [(load, 0, 0, 16), (jump_set, 0, 1, _NEW_NAMESPACES), (end, 0, 0, refuse), (end, 0, 0, allow)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    head = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(steps), ctypes.addressof(program)))
    _call(_libc.prctl(_PR_SET_SECCOMP, *_words(2, ctypes.addressof(head), 0, 0)))


def _keep_capabilities(kept: Iterable[int]) -> None:
    mask = sum(1 << number for number in kept) & _capabilities()
    for number in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        if not mask >> number & 1:
            _call(_libc.prctl(_PR_CAPBSET_DROP, *_words(number, 0, 0, 0)))
    header = struct.pack("=Ii", 0x20080522, 0)
    _call(_libc.capset(header, struct.pack("=IIIIII", mask, mask, 0, 0, 0, 0)))


def _capabilities() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("CapEff:")[2].split()[0], 16)


def _may_make_namespaces() -> bool:
    """Whether a child of ours gets them, and the right to mount in them."""
    pid = os.fork()
    if pid == 0:
        try:
            kinds = _NEWNS | _NEWPID | _NEWNET | (_NEWUSER if os.getuid() else 0)
            _call(_libc.unshare(kinds))
            _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
            _mount("none", "/tmp", "tmpfs", 0)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    texts = [text.encode() or None for text in (source, target, kind, options)]
    _call(_libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]))


def _words(*values: int) -> list[ctypes.c_ulong]:
    return [ctypes.c_ulong(value) for value in values]


def _call(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
