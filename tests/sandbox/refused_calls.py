"""System calls that no program may make, by name: (x86-64, aarch64), None where there is no such call.

The filter has no such list, since it refuses what it does not know; this one is what the tests look for.
"""

from __future__ import annotations

REFUSED: dict[str, tuple[int | None, int | None]] = {
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
    "timer_create": (222, 107), "timerfd_create": (283, 85), "eventfd2": (290, 19), "signalfd4": (289, 74),
    "inotify_init1": (294, 26), "inotify_add_watch": (254, 27), "io_setup": (206, 0), "io_submit": (209, 2),
    "sync": (162, 81), "syncfs": (306, 267), "sync_file_range": (277, 84), "flock": (73, 32), "mlock": (149, 228),
    "mlockall": (151, 230), "vmsplice": (278, 75), "splice": (275, 76), "tee": (276, 77), "sendmsg": (46, 211),
    "setsockopt": (54, 208), "mq_timedsend": (242, 182), "mq_notify": (244, 184), "get_robust_list": (274, 100),
    "getpriority": (140, 141), "sched_getscheduler": (145, 120), "remap_file_pages": (216, 234),
    "set_mempolicy": (238, 237), "mbind": (237, 235), "membarrier": (324, 283), "arch_prctl": (158, None),
    "wait4": (61, 260), "waitid": (247, 95), "readahead": (187, 213), "pkey_alloc": (330, 289),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None),
}  # fmt: skip
