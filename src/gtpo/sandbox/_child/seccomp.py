"""The system-call filter of a child, built by hand for x86-64 and aarch64 (Linux only, ctypes only).

The filter is a list of what is allowed (`syscalls`). What is not on it is refused: sockets of every family but a
connected AF_UNIX stream pair; new processes and programs (threads are allowed); signals to, tracing of, and questions
about other processes; whatever could wake a process that the server has stopped (SIGCONT, timers that send signals);
System V and POSIX message objects, anonymous memory files, asynchronous I/O and larger buffers, which `RLIMIT_AS` does
not see; locks on files of the machine, inotify, `sync`; io_uring, bpf, keys, perf, namespaces, mounts, modules; other
ABIs of the same processor (i386, x32). A number that belongs to no call that is known here gives ENOSYS, so that the C
library does without; the others give EPERM.

Files are the business of the new root and of Landlock (`namespaces`, `landlock`). Where these are missing the filter
can also refuse what they would have: reads and changes of metadata, and every way of writing; it can't confine reading.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

from . import kernel, syscalls

_ARCHES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "arm64": (0xC00000B7, 1)}

# Write-only, read-write, create, truncate, temporary file.
_WRITE_FLAGS = 0o3 | 0o100 | 0o1000 | 0o20000000
_X32_BIT = 0x40000000

_CLONE_THREAD, _CLONE_NAMESPACES = 0x00010000, 0x7E020000
_AF_UNIX, _SOCK_STREAM = 1, 1
_SIGCONT = 18
# Duplicate, descriptor and file flags, POSIX locks but not questions about them, close-on-exec duplicate, size of a
# pipe, seals.
_FCNTL_HARMLESS = (0, 1, 2, 3, 4, 6, 7, 1030, 1032, 1034)
# Get dumpable, get and set the thread's name, get seccomp, capbset and no_new_privs, name a mapping.
_PR_HARMLESS = (3, 15, 16, 21, 23, 39, 0x53564D41)
# Not: moving one's own memory to the swap, where nobody counts it, sharing equal pages, poisoning, device memory.
_ADVICE_HARMLESS = (0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17, 18, 19, 22, 23, 25)
_MAP_HUGETLB = 0x40000
# Wait, wake, requeue, and the same with a bit set.
_FUTEX_HARMLESS = (0, 1, 3, 4, 5, 9, 10)
# Terminal queries, FIONBIO, FIONREAD, close-on-exec.
_IOCTL_HARMLESS = (0x5401, 0x5413, 0x5421, 0x541B, 0x5450, 0x5451)

_LOAD, _JA, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ASK, _ERRNO = 0x7FFF0000, 0x7FC00000, 0x00050000
_REFUSE, _UNKNOWN, _NOTHING = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS, _ERRNO

_PID_MARK = 0x7A6B5C4D
_SECCOMP_MODE_FILTER = 2


def supported() -> bool:
    """Whether there is a table for this system; only a trial can tell whether the kernel obliges."""
    return sys.platform == "linux" and platform.machine() in _ARCHES and sys.maxsize > 1 << 32


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


def _ret(value: int) -> bytes:
    return _op(_RET, value)


def _argument(index: int, high: bool = False) -> bytes:
    """Loads the low (or high) 32 bits of a system call's argument; both processors are little-endian."""
    return _op(_LOAD, 16 + 8 * index + (4 if high else 0))


def _one_of(values: tuple[int, ...], refusal: int = _REFUSE) -> bytes:
    """Allows if the loaded word is one of `values`."""
    return b"".join(_op(_JEQ, v, 0, 1) + _ret(_ALLOW) for v in values) + _ret(refusal)


def _checks() -> dict[str, bytes]:
    """For each system call whose arguments matter, instructions that load them and end in a return."""
    only_self = _argument(0) + _one_of((_PID_MARK,))
    own = _argument(0) + _one_of((0, _PID_MARK))
    # The clock of another process has a negative number.
    no_foreign_clock = _argument(0) + _op(_JSET, 0x80000000, 0, 1) + _ret(_REFUSE) + _ret(_ALLOW)
    return {
        "clone": _argument(0)
        + _op(_JSET, _CLONE_NAMESPACES, 0, 1)
        + _ret(_REFUSE)
        + _op(_JSET, _CLONE_THREAD, 0, 1)
        + _ret(_ALLOW)
        + _ret(_REFUSE),
        # A stopped process must not have left anything behind that wakes it.
        "kill": _argument(1) + _op(_JEQ, _SIGCONT, 0, 1) + _ret(_REFUSE) + only_self,
        "tgkill": _argument(2) + _op(_JEQ, _SIGCONT, 0, 1) + _ret(_REFUSE) + only_self,
        "prctl": _argument(0) + _one_of(_PR_HARMLESS),
        # Reading one's own limits only: the new limit must be a null pointer.
        "prlimit64": _argument(2)
        + _op(_JEQ, 0, 1, 0)
        + _ret(_REFUSE)
        + _argument(2, high=True)
        + _op(_JEQ, 0, 1, 0)
        + _ret(_REFUSE)
        + own,
        # A datagram socket could still name another address after it is paired; a stream can't.
        "socketpair": _argument(0)
        + _op(_JEQ, _AF_UNIX, 1, 0)
        + _ret(_REFUSE)
        + _argument(1)
        + _op(_AND, 0xF)
        + _one_of((_SOCK_STREAM,)),
        "fcntl": _argument(1) + _one_of(_FCNTL_HARMLESS),
        # Large pages are the machine's, and not counted as memory of the process.
        "mmap": _argument(3) + _op(_JSET, _MAP_HUGETLB, 0, 1) + _ret(_REFUSE) + _ret(_ALLOW),
        "madvise": _argument(2) + _one_of(_ADVICE_HARMLESS),
        # Those with priority inheritance name other processes, and tell whether they exist.
        "futex": _argument(1) + _op(_AND, 0x7F) + _one_of(_FUTEX_HARMLESS, _UNKNOWN),
        # What a program may write to is in memory: nothing is to be done. On files that it may only read, they would
        # have the machine write out whatever waits for its disk.
        "fsync": _ret(_NOTHING),
        "fdatasync": _ret(_NOTHING),
        "msync": _ret(_NOTHING),
        "ioctl": _argument(1) + _one_of(_IOCTL_HARMLESS, _ERRNO | errno.ENOTTY),
        "clock_gettime": no_foreign_clock,
        "clock_getres": no_foreign_clock,
        "clock_nanosleep": no_foreign_clock,
        "sched_getaffinity": own,
        "getpgid": own,
        "getsid": own,
    }


def _search(verdicts: dict[int, bytes]) -> bytes:
    """For each loaded number the instructions of the greatest key that is not above it; a tree, to be short for all.

    Making a filter ready costs the kernel time in proportion to its length, once for each program.
    """
    if len(verdicts) == 1:
        return next(iter(verdicts.values()))
    keys = sorted(verdicts)
    middle = keys[len(keys) // 2]
    left, right = ({key: verdicts[key] for key in part} for part in (keys[: len(keys) // 2], keys[len(keys) // 2 :]))
    below, above = _search(left), _search(right)
    skip = len(below) // 8
    if skip < 256:
        return _op(_JGE, middle, skip, 0) + below + above
    return _op(_JGE, middle, 0, 1) + _op(_JA, skip) + below + above


def _numbers(*tables: syscalls.Rows) -> list[int]:
    _, column = _ARCHES[platform.machine()]
    return sorted(number for table in tables for row in table.values() if (number := row[column]) is not None)


def _foreign_is_refused() -> bytes:
    """Refuses the calls of other ABIs; afterwards the number of the call is loaded."""
    arch, _ = _ARCHES[platform.machine()]
    return (
        _op(_LOAD, 4)
        + _op(_JEQ, arch, 1, 0)
        + _ret(_REFUSE)
        + _op(_LOAD, 0)
        + _op(_JGE, _X32_BIT, 0, 1)
        + _ret(_REFUSE)
    )


def program(metadata: bool = True, writes: bool = True) -> bytes:
    """The filter's instructions, with a placeholder where the process's own number goes.

    Args:
        metadata: allow reading extended attributes of files and changing modes, owners, times and attributes, which
            Landlock does not mediate.
        writes: allow opening files for writing, and making, moving and removing them.
    """
    _, column = _ARCHES[platform.machine()]
    exact = dict.fromkeys(_numbers(syscalls.ALLOWED), _ret(_ALLOW))
    if metadata:
        exact |= dict.fromkeys(_numbers(syscalls.METADATA, syscalls.ATTRIBUTES), _ret(_ALLOW))
    else:
        # What copies a file with its attributes does without them where a file system has none.
        exact |= dict.fromkeys(_numbers(syscalls.ATTRIBUTES), _ret(_ERRNO | errno.ENOTSUP))
    if writes:
        exact |= dict.fromkeys((*_numbers(syscalls.WRITES), syscalls.OPENAT2), _ret(_ALLOW))
    else:
        for numbers, position in syscalls.OPENING.values():
            if (opening := numbers[column]) is not None:
                exact[opening] = _argument(position) + _op(_JSET, _WRITE_FLAGS, 0, 1) + _ret(_REFUSE) + _ret(_ALLOW)
    exact |= {number_of(name): body for name, body in _checks().items()}
    exact |= dict.fromkeys(syscalls.NEW_ALLOWED, _ret(_ALLOW))
    return _foreign_is_refused() + _search(_intervals(exact, syscalls.FIRST_NEW[column]))


def _intervals(exact: dict[int, bytes], first_new: int) -> dict[int, bytes]:
    """`exact` with what holds between its numbers: refused below `first_new`, unknown from there on."""
    verdicts, last = {0: _ret(_REFUSE), first_new: _ret(_UNKNOWN)}, None
    for number in exact:
        verdicts.setdefault(number + 1, _ret(_REFUSE if number + 1 < first_new else _UNKNOWN))
    verdicts |= exact
    for number in sorted(verdicts):
        if verdicts[number] == last:
            del verdicts[number]
        else:
            last = verdicts[number]
    return verdicts


def thread_questions() -> bytes:
    """A filter that has the kernel ask about each new thread and each end of one, and allows the rest (`threads`)."""
    new = _argument(0) + _op(_JSET, _CLONE_THREAD, 0, 1) + _ret(_ASK) + _ret(_ALLOW)
    out = _foreign_is_refused() + _op(_JEQ, number_of("clone"), 0, len(new) // 8) + new
    return out + _op(_JEQ, number_of("exit"), 0, 1) + _ret(_ASK) + _ret(_ALLOW)


def number_of(name: str) -> int:
    """The number of a system call of `syscalls` on this machine."""
    number = {**syscalls.ALLOWED, **syscalls.CHECKED}[name][_ARCHES[platform.machine()][1]]
    assert number is not None
    return number


class Filter:
    """A filter where the kernel can read it, made ready by a server, so that a child has next to nothing to do.

    Args:
        filter_program: instructions; the placeholder for the process's own number may be among them.
    """

    def __init__(self, filter_program: bytes) -> None:
        self._buffer = ctypes.create_string_buffer(filter_program, len(filter_program))
        head = struct.pack("=HxxxxxxQ", len(filter_program) // 8, ctypes.addressof(self._buffer))
        self._head = ctypes.create_string_buffer(head, len(head))
        self.address = ctypes.addressof(self._head)
        mark = struct.pack("=I", _PID_MARK)
        self._marks = [at for at in range(4, len(filter_program), 8) if filter_program[at : at + 4] == mark]
        self._install = kernel.prepared_prctl(kernel.PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self.address)

    def install(self, pid: int) -> None:
        """Puts the filter on the calling process for good, `pid` being its own number.

        Raises:
            OSError: the kernel refused.
        """
        for at in self._marks:
            struct.pack_into("=I", self._buffer, at, pid)
        kernel.checked(self._install(), "seccomp")
