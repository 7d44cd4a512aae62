"""The system-call filter of a child, built by hand for x86-64 and aarch64 (Linux only, ctypes only).

Covers: sockets of every family but a connected AF_UNIX stream pair; new processes and programs (threads are
allowed); signals to, tracing of, and limits or scheduling of other processes; System V and POSIX message
objects and anonymous memory files, which `RLIMIT_AS` does not see; io_uring, bpf, keys, perf, namespaces,
mounts, modules and every system call newer than Linux 5.5 that is not listed as harmless; other ABIs of the
same processor (i386, x32).

Files are the business of the new root and of Landlock (`namespaces`, `landlock`). Where these are missing the filter
can also refuse what they would have: changes of metadata, and every way of writing; it can't confine reading.

The filter is a list of what is refused: a system call that nobody thought of is allowed if it is older than
5.5.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

from . import kernel

_ARCHES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "arm64": (0xC00000B7, 1)}

# name: (x86-64, aarch64), None where there is no such call; from the kernel's unistd_64.h and asm-generic.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "bind": (49, 200),
    "listen": (50, 201), "accept4": (288, 242), "fork": (57, None), "vfork": (58, None),
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "kcmp": (312, 272), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "setrlimit": (160, 164), "memfd_create": (319, 279), "shmget": (29, 194),
    "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semctl": (66, 191), "semop": (65, 193),
    "semtimedop": (220, 192), "msgget": (68, 186), "msgctl": (71, 187), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    "bpf": (321, 280), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "seccomp": (317, 277),
    "personality": (135, 92), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "mknod": (133, None),
    "mknodat": (259, 33), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "quotactl": (179, 60), "acct": (163, 89), "swapon": (167, 224),
    "swapoff": (168, 225), "reboot": (169, 142), "syslog": (103, 116), "vhangup": (153, 58),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "setuid": (105, 146), "setgid": (106, 144),
    "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147), "setresgid": (119, 149),
    "setgroups": (116, 159), "setfsuid": (122, 151), "setfsgid": (123, 152), "capset": (126, 91),
    "setsid": (112, 157), "setpgid": (109, 154),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None),
}  # fmt: skip
# Changes that Landlock does not mediate.
_METADATA: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "flock": (73, 32),
}  # fmt: skip
# Changes that nothing else stops where there is neither Landlock nor a new root.
_WRITES: dict[str, tuple[int | None, int | None]] = {
    "creat": (85, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "truncate": (76, 45),
}  # fmt: skip
_OPENING = {"open": ((2, None), 1), "openat": ((257, 56), 2)}
_CHECKED = {
    "clone": (56, 220), "kill": (62, 129), "tgkill": (234, 131), "prctl": (157, 167), "prlimit64": (302, 261),
    "socketpair": (53, 199), "fcntl": (72, 25), "ioctl": (16, 29),
}  # fmt: skip

# The first number above those that a processor has of its own; from 424 on both share the numbers.
# Harmless: close_range, faccessat2, epoll_pwait2, futex_waitv; openat2 where writes are not the filter's business.
_FIRST_NEW = (335, 295)
_NEW_HARMLESS = (436, 439, 441, 449)
_OPENAT2 = 437
# Write-only, read-write, create, truncate, temporary file.
_WRITE_FLAGS = 0o3 | 0o100 | 0o1000 | 0o20000000
_X32_BIT = 0x40000000

_CLONE_THREAD, _CLONE_NAMESPACES = 0x00010000, 0x7E020000
_AF_UNIX, _SOCK_STREAM = 1, 1
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
# Get dumpable, get and set the thread's name, get seccomp, capbset and no_new_privs, name a mapping.
_PR_HARMLESS = (3, 15, 16, 21, 23, 39, 0x53564D41)
# Terminal queries, FIONBIO, FIONREAD, close-on-exec.
_IOCTL_HARMLESS = (0x5401, 0x5413, 0x5421, 0x541B, 0x5450, 0x5451)

_LOAD, _JA, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_REFUSE, _UNKNOWN = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS

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
    return {
        "clone": _argument(0)
        + _op(_JSET, _CLONE_NAMESPACES, 0, 1)
        + _ret(_REFUSE)
        + _op(_JSET, _CLONE_THREAD, 0, 1)
        + _ret(_ALLOW)
        + _ret(_REFUSE),
        "kill": only_self,
        "tgkill": only_self,
        "prctl": _argument(0) + _one_of(_PR_HARMLESS),
        # Reading one's own limits only: the new limit must be a null pointer.
        "prlimit64": _argument(2)
        + _op(_JEQ, 0, 1, 0)
        + _ret(_REFUSE)
        + _argument(2, high=True)
        + _op(_JEQ, 0, 1, 0)
        + _ret(_REFUSE)
        + _argument(0)
        + _one_of((0, _PID_MARK)),
        # A datagram socket could still name another address after it is paired; a stream can't.
        "socketpair": _argument(0)
        + _op(_JEQ, _AF_UNIX, 1, 0)
        + _ret(_REFUSE)
        + _argument(1)
        + _op(_AND, 0xF)
        + _one_of((_SOCK_STREAM,)),
        # An owned descriptor makes the kernel send signals to its owner.
        "fcntl": _argument(1)
        + b"".join(_op(_JEQ, c, 0, 1) + _ret(_REFUSE) for c in (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX))
        + _ret(_ALLOW),
        "ioctl": _argument(1) + _one_of(_IOCTL_HARMLESS, _ERRNO | errno.ENOTTY),
    }


def _search(refused: list[int]) -> bytes:
    """Refuses the numbers in `refused`, allows the rest; a tree, to be short for every number."""
    if len(refused) == 1:
        return _op(_JEQ, refused[0], 0, 1) + _ret(_REFUSE) + _ret(_ALLOW)
    middle = len(refused) // 2
    left, right = _search(refused[:middle]), _search(refused[middle:])
    return _op(_JGE, refused[middle], 0, 1) + _op(_JA, len(left) // 8) + left + right


def program(metadata: bool = True, writes: bool = True) -> bytes:
    """The filter's instructions, with a placeholder where the process's own number goes.

    Args:
        metadata: allow changes of modes, owners, times and attributes of files, which Landlock does not mediate.
        writes: allow opening files for writing, and making, moving and removing them.
    """
    arch, column = _ARCHES[platform.machine()]
    refused = [_REFUSED] + ([] if metadata else [_METADATA]) + ([] if writes else [_WRITES])
    harmless = (*_NEW_HARMLESS, _OPENAT2) if writes else _NEW_HARMLESS
    out = _op(_LOAD, 4) + _op(_JEQ, arch, 1, 0) + _ret(_REFUSE) + _op(_LOAD, 0)
    out += _op(_JGE, _X32_BIT, 0, 1) + _ret(_REFUSE)
    new = b"".join(_op(_JEQ, nr, 0, 1) + _ret(_ALLOW) for nr in harmless) + _ret(_UNKNOWN)
    out += _op(_JGE, _FIRST_NEW[column], 0, len(new) // 8) + new
    for name, body in _checks().items():
        out += _op(_JEQ, _CHECKED[name][column], 0, len(body) // 8) + body
    if not writes:
        for numbers, position in _OPENING.values():
            if (number := numbers[column]) is not None:
                body = _argument(position) + _op(_JSET, _WRITE_FLAGS, 0, 1) + _ret(_REFUSE) + _ret(_ALLOW)
                out += _op(_JEQ, number, 0, len(body) // 8) + body
    return out + _search(sorted(nr for table in refused for row in table.values() if (nr := row[column]) is not None))


def install(filter_program: bytes, pid: int) -> None:
    """Puts the filter on the calling process for good, `pid` being its own number.

    Raises:
        OSError: the kernel refused.
    """
    filter_program = filter_program.replace(struct.pack("=I", _PID_MARK), struct.pack("=I", pid))
    buffer = ctypes.create_string_buffer(filter_program, len(filter_program))
    head = struct.pack("=HxxxxxxQ", len(filter_program) // 8, ctypes.addressof(buffer))
    fprog = ctypes.create_string_buffer(head, len(head))
    mode = kernel.prctl(kernel.PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(fprog))
    kernel.checked(mode, "seccomp")
