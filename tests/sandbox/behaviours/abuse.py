"""What ordinary limits miss: threads, memory that is kept, the kernel's own memory, the machine's disks and files."""

from __future__ import annotations

from collections.abc import Sequence

from behaviours.checks import ATTEMPTS, SYSTEM_CALL, X86, described, each_denied, prints
from behaviours.entry import Behaviour, Facts, Outcome

AREA = "abuse"

# (x86-64, aarch64)
_NUMBERS = {
    "sync": (162, 81), "syncfs": (306, 267), "io_setup": (206, 0), "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27), "timer_create": (222, 107), "timerfd_create": (283, 85), "signalfd4": (289, 74),
    "mq_open": (240, 180), "add_key": (248, 217), "keyctl": (250, 219), "vmsplice": (278, 75), "mlockall": (151, 230),
    "get_robust_list": (274, 100), "readahead": (187, 213), "set_mempolicy": (238, 237), "syslog": (103, 116),
    "fanotify_init": (300, 262), "ioprio_set": (251, 30), "remap_file_pages": (216, 234),
    "futex": (202, 98),
}  # fmt: skip
NR = {name: row[0 if X86 else 1] for name, row in _NUMBERS.items()}
TRY_CALLS = ATTEMPTS + SYSTEM_CALL

SMALL_THREADS = """\
import threading
threading.stack_size(32768)
alive = 0
try:
    for alive in range(2000):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
except (RuntimeError, MemoryError):
    pass
print(alive)
"""

RAW_THREADS = """\
import ctypes
libc = ctypes.CDLL(None)
attributes = ctypes.create_string_buffer(256)
libc.pthread_attr_init(attributes)
libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(16384))
alive = 0
for alive in range(2000):
    if libc.pthread_create(ctypes.byref(ctypes.c_ulong()), attributes, libc.pause, None):
        break
print(alive)
"""

MANY_SHORT_THREADS = """\
import threading
done = []
for number in range(500):
    thread = threading.Thread(target=done.append, args=(number,))
    thread.start()
    thread.join()
print(len(done))
"""

HOARD = "hoard = bytearray(400 << 20)\nfor i in range(0, len(hoard), 4096):\n    hoard[i] = 1\nprint(len(hoard) >> 20)"

HIDDEN_HOARD = """\
import mmap
hoard = mmap.mmap(-1, 400 << 20)
for i in range(0, len(hoard), 4096):
    hoard[i] = 1
hoard.madvise(mmap.MADV_DONTNEED)
print(len(hoard) >> 20)
"""

SOCKET_BUFFERS = """\
import socket
kept, held = [], 0
try:
    while True:
        pair = socket.socketpair()
        kept.append(pair)
        for end in pair:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                try:
                    end.setsockopt(socket.SOL_SOCKET, option, 1 << 24)
                except OSError:
                    pass
            end.setblocking(False)
            try:
                while True:
                    held += end.send(bytes(1 << 16))
            except BlockingIOError:
                pass
except OSError:
    pass
print(held >> 20)
"""

PIPE_BUFFERS = """\
import fcntl, os
held = 0
try:
    while True:
        _, into = os.pipe()
        os.set_blocking(into, False)
        try:
            fcntl.fcntl(into, 1031, 1 << 20)
        except OSError:
            pass
        try:
            while True:
                held += os.write(into, bytes(1 << 16))
        except BlockingIOError:
            pass
except OSError:
    pass
print(held >> 20)
"""

KERNEL_MEMORY = (
    TRY_CALLS
    + f"""\
import struct
attempt('aio', system_call, {NR["io_setup"]}, 60000, ctypes.byref(ctypes.c_ulong()))
attempt('timer', system_call, {NR["timer_create"]}, 1, None, ctypes.byref(ctypes.c_int()))
attempt('timer in a file', system_call, {NR["timerfd_create"]}, 1, 0)
attempt('signals in a file', system_call, {NR["signalfd4"]}, -1, ctypes.c_char_p(bytes(8)), 8, 0)
attempt('queue', system_call, {NR["mq_open"]}, ctypes.c_char_p(b'left'), 0o102, 0o600, None)
attempt('key', system_call, {NR["add_key"]}, ctypes.c_char_p(b'user'), ctypes.c_char_p(b'left'),
        ctypes.c_char_p(b'behind'), 6, -4)
attempt('key ring', system_call, {NR["keyctl"]}, 0, -4, 1)
attempt('pages in a pipe', system_call, {NR["vmsplice"]}, 1, None, 0, 0)
attempt('memory in place', system_call, {NR["mlockall"]}, 1)
attempt('lists of others', system_call, {NR["get_robust_list"]}, os.getppid(), None, None)
attempt('memory elsewhere', system_call, {NR["set_mempolicy"]}, 0, None, 0)
attempt('pages in another order', system_call, {NR["remap_file_pages"]}, 0, 0, 0, 0, 0)
"""
)

DISK = (
    TRY_CALLS
    + f"""\
attempt('sync', system_call, {NR["sync"]})
attempt('syncfs', lambda: system_call({NR["syncfs"]}, os.open(os.path.dirname(os.__file__), os.O_RDONLY)))
attempt('readahead', lambda: system_call({NR["readahead"]}, os.open(os.__file__, os.O_RDONLY), 0, 1 << 30))
attempt('priority on the disk', system_call, {NR["ioprio_set"]}, 1, 0, 0)
"""
)

WATCHES = (
    TRY_CALLS
    + f"""\
def watch(path):
    fd = system_call({NR["inotify_init1"]}, 0)
    system_call({NR["inotify_add_watch"]}, fd, ctypes.c_char_p(os.fsencode(path)), 0xfff)
attempt('watch outside', watch, OUTSIDE_DIR)
attempt('watch the library', watch, os.path.dirname(os.__file__))
attempt('watch all', system_call, {NR["fanotify_init"]}, 0, 0)
attempt('attributes outside', os.getxattr, SECRET_FILE, 'user.mark')
attempt('list of attributes outside', os.listxattr, SECRET_FILE)
attempt('messages of the kernel', system_call, {NR["syslog"]}, 3, ctypes.create_string_buffer(64), 64)
"""
)

MEMORY_ELSEWHERE = (
    TRY_CALLS
    + """
import mmap
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
for name, advice in (('to the swap', 21), ('cold', 20), ('shared with equal pages', 12)):
    attempt(name, page.madvise, advice)
attempt('large pages', mmap.mmap, -1, 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
"""
)

OWNERS_OF_LOCKS = (
    TRY_CALLS
    + f"""
word = ctypes.c_uint32(1)
for operation in (6, 7, 8, 11, 12, 13):
    attempt(f'operation {{operation}}', system_call, {NR["futex"]}, ctypes.byref(word), operation, 0, 0, 0, 0)
"""
)

WRITE_OUT = """\
import mmap, os
file = os.open(os.__file__, os.O_RDONLY)
page = mmap.mmap(file, 0, prot=mmap.PROT_READ)
for _ in range(20_000):
    os.fsync(file)
    os.fdatasync(file)
    page.flush()
print("in memory")
"""


def at_most(most: int, least: int = 0):
    """The last program printed a number within these bounds."""

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        last = results[-1]
        text = last.stdout.strip()
        if last.status == "ok" and text.isdigit() and least <= int(text) <= most:
            return ""
        return f"it should have got {least} to {most}: {described(last)}"

    return check


def not_kept(results: Sequence[Outcome], facts: Facts) -> str:
    """The session ended with the program that kept too much, and said so; what came next began anew."""
    first, second = results
    if getattr(first, "session_lost", False) and "session may keep" in getattr(first, "note", ""):
        return "" if second.error_type == "NameError" else f"it is still there: {described(second)}"
    return f"memory was kept: {described(first)}"


BEHAVIOURS = (
    Behaviour(
        name="threads with small stacks", area=AREA, code=SMALL_THREADS, holds=at_most(70), limits={"memory_mb": 2048}
    ),
    Behaviour(name="threads below python", area=AREA, code=RAW_THREADS, holds=at_most(70), limits={"memory_mb": 2048}),
    Behaviour(name="many short threads", area=AREA, code=MANY_SHORT_THREADS, holds=at_most(500, 500)),
    Behaviour(
        name="memory of a stopped session",
        area=AREA,
        code=(HOARD, "len(hoard)"),
        rollouts=("hoarder", "hoarder"),
        holds=not_kept,
        harmless=False,
    ),
    Behaviour(
        name="unseen memory of a stopped session",
        area=AREA,
        code=(HIDDEN_HOARD, "len(hoard)"),
        rollouts=("hoarder", "hoarder"),
        holds=not_kept,
        harmless=False,
    ),
    Behaviour(name="socket buffers", area=AREA, code=SOCKET_BUFFERS, holds=at_most(32), harmless=False),
    Behaviour(name="pipe buffers", area=AREA, code=PIPE_BUFFERS, holds=at_most(16), harmless=False),
    Behaviour(name="memory of the kernel", area=AREA, code=KERNEL_MEMORY, holds=each_denied("EINVAL")),
    Behaviour(name="disks of the machine", area=AREA, code=DISK, holds=each_denied(), harmless=False),
    Behaviour(
        name="watches and attributes outside",
        area=AREA,
        code=WATCHES,
        holds=each_denied("ENOTSUP"),
    ),
    Behaviour(
        name="priority of others",
        area=AREA,
        code=ATTEMPTS + "attempt('priority', os.getpriority, os.PRIO_USER, 0)",
        holds=each_denied(),
    ),
    Behaviour(name="memory where nobody counts it", area=AREA, code=MEMORY_ELSEWHERE, holds=each_denied("ENOMEM")),
    Behaviour(name="owners of locks", area=AREA, code=OWNERS_OF_LOCKS, holds=each_denied()),
    Behaviour(
        name="disks through files of the machine",
        area=AREA,
        code=WRITE_OUT,
        holds=prints("in memory"),
        limits={"cpu_s": 2.0, "wall_s": 8.0},
        harmless=False,
    ),
)
