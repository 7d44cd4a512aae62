"""Starts a server: namespaces, a new root, the preloaded interpreter, then the rights that it gives up permanently.

A step that the system refuses is either reported, so that the sandbox decides, or ends the server; none is skipped
silently. The resulting level is not inferred from these steps but tested by a child (`child.refusals`).
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
from .proc import Proc
from .server import Means, Server
from .threads import Threads

_FILES = 1 << 16
"""Descriptors of a server, three for each session; a child closes all of them."""
_STACK_BYTES, _THREAD_STACK_BYTES = 100 << 20, 16 << 20
_ALWAYS = (
    "bisect cmath collections copy dataclasses datetime decimal fractions functools heapq itertools json "
    "math operator random re statistics string textwrap typing"
)


@dataclass(frozen=True)
class Config:
    """The trainer's configuration of a server.

    Args:
        home: its own empty directory if nothing is confined, else "".
        witness: a readable file outside, to test what can be reached.
        confine: whether to give up any rights; False only if the user asked for it.
        namespaces: whether to create namespaces and a new root.
        uid: user id to switch to if the server starts as root.
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
            proc = Proc()
            namespaces.new_root(readable)
        except OSError as error:
            channel.send({"failed": str(error)})
            return
        report["namespaces"] = True
    else:
        proc = Proc()
    work = namespaces.WORK if config.namespaces else os.path.join(config.home, "work") if config.home else "/"
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", LANG="C.UTF-8", HOME=work, TMPDIR=work)
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    if config.confine and os.geteuid() == 0:
        report["notes"] += _become(config.uid, readable, config.namespaces)
    if config.namespaces and config.confine:  # a change of user has disabled what mounting needs
        kernel.forbid_capabilities()
        kernel.keep_capabilities(kernel.CAP_SYS_ADMIN)
    with namespaces.passing_work() if config.namespaces else contextlib.nullcontext():
        _prepare(config)
    if proc.threads() > 1:
        channel.send({"failed": f"{proc.threads()} threads run after preloading {', '.join(config.preload)}"})
        return
    confinement = _lock_down(readable, report) if config.confine else None
    threads = _threads(report) if config.confine else None
    if config.confine and not _sees_memory(proc):
        report["notes"].append("memory that sessions keep is bounded by address space alone, since /proc can't be read")
    if config.namespaces and config.confine and not proc.own_numbers():
        report["notes"].append("programs of a worker can tell how many processes and threads there were before them")
    base_bytes, maps = proc.address_space(), proc.maps()
    gc.collect()
    gc.freeze()
    gc.disable()
    if sys.platform == "linux":
        kernel.collapse_heap(maps)
    file_system = namespaces.Work() if config.namespaces else None
    means = Means(work, bool(config.home), file_system, base_bytes, confinement, proc, threads)
    server = Server(channel, means)
    try:
        channel.send({**report, "refused": server.self_test(config.witness)})
        server.serve()
    except OSError:
        pass
    finally:
        os.chdir("/")
        if config.home:
            remove(config.home)


def _sees_memory(proc: Proc) -> bool:
    file = proc.memory_file(os.getpid())
    if file is not None:
        os.close(file)
    return file is not None


def _threads(report: dict[str, Any]) -> Threads | None:
    """Returns the thread limit of programs; if the kernel can't ask, the report says so."""
    try:
        return Threads()
    except OSError as error:
        report["notes"].append(f"the threads of a program are bounded by address space alone: {error}")
        return None


def _become(uid: int, readable: list[str], new_root: bool) -> list[str]:
    """Switches from root to another user, unless that user can't read the interpreter; returns what to report.

    Args:
        uid: id of the other user, who needs no account.
        readable: paths that the user must be able to read.
        new_root: whether the server has a new root, in which case it keeps its capabilities until `_lock_down`.
    """
    kernel.forbid_capabilities()
    closed = [path for path in readable if not _open_to_all(path, parents=not new_root)]
    if closed:
        return [f"stays root without capabilities, since other users can't read {closed[0]}"]
    kernel.prctl(kernel.PR_SET_KEEPCAPS, int(new_root))
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
    """Sets the interpreter up as programs expect it, before anything is forked."""
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


def _lock_down(readable: list[str], report: dict[str, Any]) -> child.Confinement:
    """Gives up the rights that neither the server nor its children need, and prepares what each child also gives up.

    With a new root the server keeps one capability, to mount the file system for programs; the children give it up.
    """
    new_root = report["namespaces"]
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = _FILES if files == resource.RLIM_INFINITY else min(files, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    child.lower(resource.RLIMIT_STACK, _STACK_BYTES, _STACK_BYTES)
    child.lower(resource.RLIMIT_CORE, 0, 0)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.forbid_capabilities()
    kernel.keep_capabilities(kernel.CAP_SYS_ADMIN) if new_root else kernel.drop_capabilities()
    # The rule is on the parent: Landlock ignores a directory that a mount hides.
    writable = [os.path.dirname(namespaces.WORK)] if new_root else []
    rules = landlock.ruleset([*readable, *namespaces.DEVICES], writable)
    report["landlock"] = rules.version
    calls = seccomp.program() if new_root else seccomp.program(metadata=False, writes=bool(rules.version))
    return child.Confinement(seccomp.Filter(calls), rules, new_root=new_root)
