"""What happens inside a forked child, before and around the untrusted program.

The order matters: descriptors, limits and signals first, the system-call filter last, then the program.
Nothing here returns to the server's code: the child ends in `os._exit`, so no exit handler or finaliser
runs.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import math
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from . import kernel, landlock, namespaces, seccomp
from .report import Report
from .snippet import Cell

FILE_BYTES = 16 << 20
OPEN_FILES = 128
_LASTING_CPU_S = 3600
_SPARED_PROCESSES = 256
"""Part of the user's process and thread limit reserved for the sandbox's user: programs are refused first."""


@dataclass(frozen=True)
class Confinement:
    """The confinement of a server's children, prepared once for all of them.

    Args:
        filter: the system-call filter.
        rules: the files that may be opened.
        new_root: whether there is a new root, with `namespaces.WORK` to write in.
    """

    filter: seccomp.Filter
    rules: landlock.Ruleset
    new_root: bool

    def enter_directory(self, directory: str, own: bool) -> None:
        """Changes to the working directory and gives up access to all other files; raises OSError.

        Args:
            directory: the working directory.
            own: whether the process outlives others that may write there, so that it needs its own file system.
        """
        if self.new_root and own:
            namespaces.own_work()
        os.chdir(directory)
        self.rules.enforce()

    def enter(self) -> None:
        """Gives up the remaining rights permanently; raises OSError."""
        if self.new_root:
            kernel.drop_capabilities()
        self.filter.install(os.getpid())


@dataclass(frozen=True)
class Order:
    """The server's instructions for a child.

    Args:
        fds: descriptors of code, stdout and stderr.
        directory: working directory, empty and not shared.
        cpu_s: CPU time in seconds, enforced by the server; the child's own limit is a looser second safeguard.
        memory_bytes: address space, including that of the interpreter.
        file_bytes: maximum size of a file.
        confinement: None if nothing is confined.
        parent: process id of the server.
        seed: seed for the random number generators; None for fresh randomness.
        lasting: whether the child stays for several programs, so that only the server limits the CPU time of each.
    """

    fds: tuple[int, int, int]
    directory: str
    cpu_s: float
    memory_bytes: int
    file_bytes: int
    confinement: Confinement | None
    parent: int
    seed: int | None
    lasting: bool = False


def main(order: Order, report: Report) -> NoReturn:
    """Confines the calling process, runs the program, reports how it ended, exits."""
    status, detail, leave = "tool_failure", "", os._exit
    try:
        with contextlib.suppress(BaseException):
            try:
                code = read_code(order.fds[0])
                surroundings(order)
                descriptors((os.open(os.devnull, os.O_RDONLY), *order.fds[1:]))
                confine(order)
                report.begin()
                status, detail = Cell(code).run()
            except MemoryError as error:
                status, detail = "memory", type(error).__name__
            except BaseException as error:
                detail = f"{type(error).__name__}: {error}"
        report.say(status, detail)
    finally:
        leave(0 if status == "ok" else 1)


def confine(order: Order) -> None:
    """Sets the limits of the calling process, and gives up what remains after `surroundings`."""
    _limits(order)
    _randomness(order.seed)
    if order.confinement is not None:
        order.confinement.enter()


def refusals(confinement: Confinement, directory: str, server: int, witness: str) -> list[str]:
    """Confines the calling process, tries what must be refused, and returns what was refused.

    Args:
        confinement: as for a program.
        directory: as for a program.
        server: process id of the server.
        witness: a file outside that any user may read and write.
    """
    confinement.enter_directory(directory, own=False)
    confinement.enter()
    trials: dict[str, list[Callable[[], object]]] = {
        "network": [lambda: socket.socket(socket.AF_INET), lambda: socket.socket(socket.AF_UNIX)],
        "processes": [lambda: os.fork() or os._exit(0), lambda: os.execv("/", ["/"])],
        "signals": [lambda: os.kill(server, 0)],
        "reads": [lambda: os.open(witness, os.O_RDONLY), lambda: os.listdir("/proc")],
        "writes": [
            lambda: os.open(witness, os.O_WRONLY),
            lambda: os.mkdir(witness + ".new"),
            lambda: os.mkdir("../beside"),
            lambda: os.chmod("..", 0o700),
        ],
        "paths": [lambda: os.stat(witness)],
    }
    refused = []
    for name, calls in trials.items():
        with contextlib.suppress(OSError):
            if all(_is_refused(call) for call in calls):
                refused.append(name)
    return refused


def _is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError as error:
        return error.errno in (errno.EPERM, errno.EACCES, errno.ENOENT, errno.EROFS)
    return False


def read_code(fd: int) -> str:
    """Reads the program's source from its file."""
    data, size = b"", os.fstat(fd).st_size
    while len(data) < size:
        data += os.pread(fd, size - len(data), len(data))
    return data.decode("utf-8", "surrogatepass")


def descriptors(standard: tuple[int, int, int], keep: int | None = None, at: int = 3) -> None:
    """Keeps only the three standard descriptors.

    Args:
        standard: descriptors that become 0, 1 and 2.
        keep: one more descriptor to keep, or None.
        at: its new number, 3.
    """
    signal.set_wakeup_fd(-1)
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
    if keep is not None:
        os.dup2(keep, at)
    os.closerange(3 if keep is None else at + 1, os.sysconf("SC_OPEN_MAX"))


def surroundings(order: Order) -> None:
    """Sets up its own process group, its end with the server, and the working directory as the only one."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != order.parent:
            os._exit(1)
    if order.confinement is not None:
        order.confinement.enter_directory(order.directory, own=order.lasting)
    else:
        os.chdir(order.directory)
    gc.enable()


def _randomness(seed: int | None) -> None:
    """Seeds the global generators; a fork reseeds `random` by itself, but not numpy's generator."""
    if seed is not None:
        sys.modules["random"].seed(seed)
    if "numpy.random" in sys.modules:
        fresh = int.from_bytes(os.urandom(4), "little")
        sys.modules["numpy.random"].seed(fresh if seed is None else seed % 2**32)


def _limits(order: Order) -> None:
    cpu = _LASTING_CPU_S if order.lasting else math.ceil(order.cpu_s) + 1
    wanted = [
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
    ]
    allowed = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if allowed != resource.RLIM_INFINITY:
        spared = max(allowed - _SPARED_PROCESSES, allowed // 2)
        wanted.append((resource.RLIMIT_NPROC, spared, spared))
    for kind, soft, hard in wanted:
        lower(kind, soft, hard)
    for kind, value in changing_limits(order):
        lower(kind, value, resource.RLIM_INFINITY if order.lasting else value)


def changing_limits(order: Order) -> list[tuple[int, int]]:
    """Limits that the server resets for each program of a lasting child; the filter denies this to programs."""
    memory = [(resource.RLIMIT_AS, order.memory_bytes)] if sys.platform == "linux" else []
    return [(resource.RLIMIT_FSIZE, order.file_bytes), *memory]


def lower(kind: int, soft: int, hard: int) -> None:
    """Sets a resource limit, but never above the existing hard limit."""
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))
