"""Which system calls a program may make, with their numbers on x86-64 and aarch64.

Derived from what CPython, numpy, sympy, pandas and matplotlib make, imports and a corpus of programs, as recorded by
`tests/sandbox/record_calls.py`. What is not listed here is refused, whatever kernel it comes with. Left out although
a program of the corpus makes them, since they reach beyond the process: `socket`, `connect`, `execve`, `vfork`,
`flock` (locks files of the machine), `sendmsg` (hands on descriptors), `setsockopt` (larger buffers), `sync`.

Numbers are from the kernel's unistd_64.h and asm-generic; None where there is no such call.
"""

from __future__ import annotations

Rows = dict[str, tuple["int | None", "int | None"]]

# Without regard to their arguments.
ALLOWED: Rows = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286),
    "pwritev2": (328, 287), "open": (2, None), "openat": (257, 56), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48),
    "getdents": (78, None), "getdents64": (217, 61), "readlink": (89, None), "readlinkat": (267, 78),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72), "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "ftruncate": (77, 46), "fallocate": (285, 47),
    "fadvise64": (221, 223), "sendfile": (40, 71),
    "copy_file_range": (326, 285), "statfs": (137, 43), "fstatfs": (138, 44), "umask": (95, 166),
    "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "brk": (12, 214),
    "set_robust_list": (273, 99), "rseq": (334, 293),
    "set_tid_address": (218, 96), "sched_yield": (24, 124), "gettid": (186, 178), "getpid": (39, 172),
    "getppid": (110, 173), "exit": (60, 93), "exit_group": (231, 94), "restart_syscall": (219, 128),
    "getcpu": (309, 168), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "pause": (34, None), "alarm": (37, None), "setitimer": (38, 103),
    "getitimer": (36, 102), "gettimeofday": (96, 169), "time": (201, None), "nanosleep": (35, 101),
    "times": (100, 153), "getrusage": (98, 165), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158),
    "getpgrp": (111, None), "capget": (125, 90), "uname": (63, 160), "sysinfo": (99, 179), "getrandom": (318, 278),
    "getrlimit": (97, 163), "sendto": (44, 206), "recvfrom": (45, 207), "recvmsg": (47, 212), "shutdown": (48, 210),
    "getsockname": (51, 204), "getpeername": (52, 205), "getsockopt": (55, 209),
}  # fmt: skip
# Changes that Landlock does not mediate.
METADATA: Rows = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
# Reading extended attributes, which Landlock does not mediate either.
ATTRIBUTES: Rows = {
    "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11),
    "llistxattr": (195, 12), "flistxattr": (196, 13),
}  # fmt: skip
# Changes that nothing else stops where there is neither Landlock nor a new root.
WRITES: Rows = {
    "creat": (85, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None),
    "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "truncate": (76, 45),
}  # fmt: skip
# Allowed for some arguments only.
CHECKED: Rows = {
    "clone": (56, 220), "kill": (62, 129), "tgkill": (234, 131), "prctl": (157, 167), "prlimit64": (302, 261),
    "socketpair": (53, 199), "fcntl": (72, 25), "ioctl": (16, 29), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "sched_getaffinity": (204, 123), "getpgid": (121, 155),
    "getsid": (124, 156), "mmap": (9, 222), "madvise": (28, 233),
    "futex": (202, 98), "fsync": (74, 82), "fdatasync": (75, 83), "msync": (26, 227),
}  # fmt: skip
# Opening a file, with the position of its flags.
OPENING = {"open": ((2, None), 1), "openat": ((257, 56), 2)}

# The first number above those that a processor has of its own; from 424 on both share the numbers.
FIRST_NEW = (335, 295)
# close_range, faccessat2, epoll_pwait2, futex_waitv; openat2 where writes are not the filter's business.
NEW_ALLOWED = (436, 439, 441, 449)
OPENAT2 = 437
