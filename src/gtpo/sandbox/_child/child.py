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
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from . import kernel, landlock, seccomp
from .snippet import Cell

BOARD_BYTES = 256
FILE_BYTES = 16 << 20
OPEN_FILES = 128
_LASTING_CPU_S = 3600


@dataclass(frozen=True)
class Order:
    """What the server tells a child.

    Args:
        fds: code, stdout, stderr.
        directory: working directory, empty and its own.
        cpu_s: processor time, enforced by the server; the child's own limit is a looser second line.
        memory_bytes: address space, the interpreter's included.
        file_bytes: size of any one file.
        filter: the system-call filter, or None.
        parent: process number of the server.
        seed: of the generators of random numbers; None for fresh randomness.
        apart: files that it may read where sessions of others have directories too, so that it needs a Landlock
            domain of its own; else empty.
        lasting: whether it stays for several programs, so that the server alone bounds the processor time of each.
    """

    fds: tuple[int, int, int]
    directory: str
    cpu_s: float
    memory_bytes: int
    file_bytes: int
    filter: bytes | None
    parent: int
    seed: int | None
    apart: tuple[str, ...] = ()
    lasting: bool = False


def main(order: Order, board: mmap.mmap, begun: mmap.mmap) -> NoReturn:
    """Confines the calling process, runs the program, writes "status NUL class" on the board, exits.

    Args:
        order: what to do.
        board: shared with the server.
        begun: shared too; marked and given away for good before the program runs, so that a program can't pass
            itself off as a failure of the sandbox.
    """
    status, detail, leave = "tool_failure", "", os._exit
    try:
        with contextlib.suppress(BaseException):
            try:
                code = read_code(order.fds[0])
                descriptors((os.open(os.devnull, os.O_RDONLY), *order.fds[1:]))
                confine(order)
                mark(begun)
                status, detail = Cell(code).run()
            except MemoryError as error:
                status, detail = "memory", type(error).__name__
            except BaseException as error:
                detail = f"{type(error).__name__}: {error}"
        report(board, status, detail)
    finally:
        leave(0 if status == "ok" else 1)


def mark(begun: mmap.mmap) -> None:
    """Says that a program begins, in memory that it will not have."""
    begun[0] = 1
    begun.close()


def confine(order: Order) -> None:
    """Limits and confinement of the calling process, in the order in which they still can be had."""
    _surroundings(order)
    _limits(order)
    _randomness(order.seed)
    if order.apart:
        landlock.restrict([*order.apart, order.directory], [order.directory])
    if order.filter is not None:
        seccomp.install(order.filter, os.getpid())


def report(board: mmap.mmap, status: str, detail: str) -> None:
    """Writes "status NUL class" on the board."""
    with contextlib.suppress(BaseException):
        text = f"{status}\0{detail}".encode("utf-8", "replace")[: BOARD_BYTES - 1]
        board[: len(text)] = text


def refusals(filter_program: bytes, server: int, witness: str) -> list[str]:
    """Puts the filter on the calling process, tries what must be refused, returns what was refused.

    Args:
        filter_program: from `seccomp.program`.
        server: process number of the server.
        witness: a file outside that any user may read and write.
    """
    seccomp.install(filter_program, os.getpid())
    trials: dict[str, list[Callable[[], object]]] = {
        "network": [lambda: socket.socket(socket.AF_INET), lambda: socket.socket(socket.AF_UNIX)],
        "processes": [lambda: os.fork() or os._exit(0), lambda: os.execv("/", ["/"])],
        "signals": [lambda: os.kill(server, 0)],
        "reads": [lambda: os.open(witness, os.O_RDONLY), lambda: os.listdir("/proc")],
        "writes": [lambda: os.open(witness, os.O_WRONLY), lambda: os.mkdir(witness + ".new")],
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
        return error.errno in (errno.EPERM, errno.EACCES, errno.ENOENT)
    return False


def read_code(fd: int) -> str:
    """The program's text from its file."""
    data, size = b"", os.fstat(fd).st_size
    while len(data) < size:
        data += os.pread(fd, size - len(data), len(data))
    return data.decode("utf-8", "surrogatepass")


def descriptors(standard: tuple[int, int, int], keep: int | None = None, at: int = 3) -> None:
    """Leaves the three standard ones, and nothing else.

    Args:
        standard: what becomes 0, 1 and 2.
        keep: one more to keep, or None.
        at: its new number, 3.
    """
    signal.set_wakeup_fd(-1)
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
    if keep is not None:
        os.dup2(keep, at)
    os.closerange(3 if keep is None else at + 1, 4096)


def _surroundings(order: Order) -> None:
    """A process group of its own, death with the server, the working directory."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != order.parent:
            os._exit(1)
    os.chdir(order.directory)
    gc.enable()


def _randomness(seed: int | None) -> None:
    """Seeds the global generators; a fork seeds `random` anew by itself, but not numpy's."""
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
    for kind, soft, hard in wanted:
        lower(kind, soft, hard)
    for kind, value in changing_limits(order):
        lower(kind, value, resource.RLIM_INFINITY if order.lasting else value)


def changing_limits(order: Order) -> list[tuple[int, int]]:
    """The limits that the server sets anew for each program of a child that stays; the filter denies it to programs."""
    memory = [(resource.RLIMIT_AS, order.memory_bytes)] if sys.platform == "linux" else []
    return [(resource.RLIMIT_FSIZE, order.file_bytes), *memory]


def lower(kind: int, soft: int, hard: int) -> None:
    """Sets a resource limit, but never above the hard limit that already stands."""
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), ceiling if hard == resource.RLIM_INFINITY else min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))
