"""How a server comes up: namespaces, a new root, the preloaded interpreter, then everything it gives away for good.

Every step that the system refuses is either reported, and the sandbox decides, or ends the server; none is skipped
in silence. What finally holds is not concluded from these steps but tried by a child (`child.refusals`).
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import io
import json
import os
import resource
import signal
import socket
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import Any

from . import child, kernel, landlock, namespaces, seccomp
from .channel import Channel
from .cleanup import remove
from .server import Server

_STACK_BYTES, _THREAD_STACK_BYTES = 100 << 20, 16 << 20
_ALWAYS = (
    "bisect cmath collections copy dataclasses datetime decimal fractions functools heapq itertools json "
    "math operator random re statistics string textwrap typing"
)


@dataclass(frozen=True)
class Config:
    """What the trainer asks of a server.

    Args:
        home: an empty directory of its own where nothing is confined, else "".
        witness: a readable file outside, for the trial of what can be reached.
        confine: whether to give anything away at all; False only where the user asked for it.
        namespaces: whether to make namespaces and a new root.
        uid: user to become where the server starts as root.
        site: directories of installed packages.
        preload: modules to import before the first fork.
        warm: programs to run once before the first fork, so that what they load and cache is shared.
    """

    home: str
    witness: str
    confine: bool
    namespaces: bool
    uid: int
    site: list[str]
    preload: list[str]
    warm: list[str]


class _Proc:
    """What `/proc` says of this process, readable even after the new root has no `/proc`."""

    def __init__(self) -> None:
        self._fds = {}
        for name in ("statm", "maps", "task"):
            with contextlib.suppress(OSError):
                self._fds[name] = os.open(f"/proc/self/{name}", os.O_RDONLY | os.O_CLOEXEC)

    def address_space(self) -> int:
        """Bytes of address space that the server itself takes, which each child inherits."""
        if "statm" not in self._fds:
            return 512 << 20
        return int(os.pread(self._fds["statm"], 4096, 0).split()[0]) * resource.getpagesize()

    def maps(self) -> str:
        if "maps" not in self._fds:
            return ""
        with open(os.dup(self._fds["maps"]), encoding="utf-8", errors="replace") as file:
            return file.read()

    def threads(self) -> int:
        return len(os.listdir(self._fds["task"])) if "task" in self._fds else 1

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)


def main() -> None:
    """Entry point: `directory of _child, number of the socket, Config as JSON`."""
    _, _, inherited, text = sys.argv
    config = Config(**json.loads(text))
    control = socket.socket(fileno=os.dup(int(inherited)))
    os.close(int(inherited))
    channel = Channel(control)
    report: dict[str, Any] = {"pid": os.getpid(), "namespaces": False, "landlock": 0, "notes": []}
    readable = namespaces.readable_paths([*sys.path[1:], *config.site])
    if config.namespaces:
        try:
            report["pid"] = namespaces.enter(control.fileno())
            proc = _Proc()
            namespaces.new_root(readable)
        except OSError as error:
            channel.send({"failed": str(error)})
            return
        report["namespaces"] = True
    else:
        proc = _Proc()
    home = namespaces.HOME if config.namespaces else config.home
    work = os.path.join(home, "work") if home else "/"
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", LANG="C.UTF-8", HOME=work, TMPDIR=work)
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    if config.confine and os.geteuid() == 0:
        report["notes"] += _become(config.uid, readable, home)
    _prepare(config)
    if proc.threads() > 1:
        channel.send({"failed": f"{proc.threads()} threads run after preloading {', '.join(config.preload)}"})
        return
    if config.confine:
        report["landlock"] = _lock_down(readable, home)
    base_bytes, maps = proc.address_space(), proc.maps()
    proc.close()
    gc.collect()
    gc.freeze()
    gc.disable()
    if sys.platform == "linux":
        kernel.collapse_heap(maps)
    server = Server(
        channel,
        work,
        disposable=bool(home),
        base_bytes=base_bytes,
        filter_program=_filter(config.confine, report),
        readable=(*readable, *namespaces.DEVICES) if report["landlock"] and home else (),
    )
    try:
        channel.send({**report, "refused": server.self_test(config.witness)})
        server.serve()
    except OSError:
        pass
    finally:
        os.chdir("/")
        if config.home:
            remove(config.home)


def _filter(confine: bool, report: dict[str, Any]) -> bytes | None:
    """The system-call filter that completes what the namespaces and Landlock hold."""
    if not confine:
        return None
    if report["namespaces"]:
        return seccomp.program()
    return seccomp.program(metadata=False, writes=bool(report["landlock"]))


def _become(uid: int, readable: list[str], home: str) -> list[str]:
    """Leaves root for another user, unless that user could not read the interpreter; returns what to report.

    Args:
        uid: of the other user, who needs no account.
        readable: what that user must be able to read.
        home: directory to hand over in the new root; "" if there is no new root.
    """
    closed = [path for path in readable if not _open_to_all(path, parents=not home)]
    if closed:
        return [f"stays root without capabilities, since other users can't read {closed[0]}"]
    if home:
        os.chown(home, uid, uid)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    return []


def _open_to_all(path: str, parents: bool) -> bool:
    path = os.path.realpath(path)
    wanted = 0o005 if os.path.isdir(path) else 0o004
    if os.stat(path).st_mode & wanted != wanted:
        return False
    while parents and path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


def _prepare(config: Config) -> None:
    """Makes the interpreter what a program expects of it, before anything is forked."""
    sys.path[:] = ["", *(path for path in sys.path[1:] if path), *config.site]
    sys.argv = ["main.py"]
    sys.dont_write_bytecode = True
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    threading.stack_size(_THREAD_STACK_BYTES)
    helpers = importlib.import_module("_sitebuiltins")
    for name in ("exit", "quit"):
        setattr(builtins, name, helpers.Quitter(name, "Ctrl-D"))
    builtins.help = helpers._Helper()
    for name in [*_ALWAYS.split(), *config.preload]:
        importlib.import_module(name)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for program in config.warm:
            exec(program, {"__name__": "warm"})
    own = [name for name in sys.modules if name.partition(".")[0] == __package__]
    for name in own:
        del sys.modules[name]


def _lock_down(readable: list[str], home: str) -> int:
    """What the server and all its children go without; returns the version of Landlock in force."""
    child.lower(resource.RLIMIT_STACK, _STACK_BYTES, _STACK_BYTES)
    child.lower(resource.RLIMIT_CORE, 0, 0)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    version = landlock.restrict([*readable, *namespaces.DEVICES], [home] if home else [])
    kernel.drop_capabilities()
    return version
