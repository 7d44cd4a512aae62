"""From one rollout to another: nothing is left, shared or woken that a program of another rollout could meet."""

from __future__ import annotations

from collections.abc import Sequence

from behaviours.checks import ATTEMPTS, SYSTEM_CALL, X86, described, each_denied, every, prints
from behaviours.entry import Behaviour, Check, Facts, Outcome

AREA = "crossing"

# What a later program can see of an earlier one around and in its own directory; nothing of it may differ.
LOOK_AROUND = """\
import os
def state(path):
    try:
        about = os.stat(path)
        names = [] if path == '/' else sorted(os.listdir(path))
        attributes = os.listxattr(path)
    except OSError as error:
        return type(error).__name__
    return oct(about.st_mode), names, attributes, about.st_nlink
print([state(path) for path in ('..', '.', '/', '/tmp', '/dev/shm')], 'left' in os.environ.get('HOME', ''))
there = os.statvfs('.')
print(there.f_files - there.f_ffree < 10 if there.f_files == 4096 else 'not ours')
"""

WRITE_AROUND = (
    ATTEMPTS
    + """\
def put(path):
    with open(path, 'w') as file:
        file.write('left')
home = os.getcwd()
parent = os.path.dirname(home)
attempt('file', put, parent + '/left-behind')
attempt('file by ..', put, '../left-behind')
attempt('directory', os.mkdir, parent + '/left-behind-too')
attempt('link', os.symlink, '/', parent + '/left-behind-link')
attempt('mode', os.chmod, parent, 0o777)
attempt('no mode', os.chmod, parent, 0)
attempt('time', os.utime, parent, (1, 1))
attempt('attribute', os.setxattr, parent, 'user.left', b'behind')
attempt('rename of the own directory', os.rename, home, parent + '/gone')
attempt('removal of the own directory', os.rmdir, home)
attempt('link in its place', os.symlink, '/', home)
attempt('mode of a device', os.chmod, '/dev/null', 0o600)
attempt('time of a device', os.utime, '/dev/null', (1, 1))
"""
)

MARK_OWN = """\
import os
for deed in (
    lambda: os.chmod('.', 0o711),
    lambda: os.utime('.', (1, 1)),
    lambda: os.setxattr('.', 'user.left', b'behind'),
    lambda: open('left-behind', 'w').close(),
):
    try:
        deed()
    except OSError:
        pass
"""

FILL = """\
import os
written = 0
try:
    for place in ('../', ''):
        for number in range(6000):
            try:
                with open(f'{place}full{number}', 'wb', buffering=0) as file:
                    if number < 64:
                        written += file.write(bytes(1 << 20))
            except OSError:
                break
finally:
    print('tried')
"""

ROOM = """\
try:
    for number in range(3000):
        open(f'small{number}', 'w').close()
    with open('large', 'wb', buffering=0) as file:
        print(sum(file.write(bytes(1 << 20)) for _ in range(12)) >> 20)
except PermissionError:
    print(12)
"""

# A timer_create whose signal SIGCONT comes every 10 ms. Newer kernels keep back a signal that nobody handles.
TIMER = (
    SYSTEM_CALL
    + f"""\
import signal, struct, threading, time
signal.signal(signal.SIGCONT, lambda number, frame: None)
event = ctypes.create_string_buffer(struct.pack('=QiiQ', 0, 18, 0, 0), 64)
timer = ctypes.c_int()
try:
    system_call({222 if X86 else 107}, 1, event, ctypes.byref(timer))
    every = ctypes.create_string_buffer(struct.pack('=qqqq', 0, 10**7, 0, 10**7))
    system_call({223 if X86 else 110}, timer.value, 0, every, None)
except OSError as error:
    print('no timer')
"""
)
COUNT = """
turns = 0
def count():
    global turns
    while True:
        turns += 1
threading.Thread(target=count, daemon=True).start()
"""

WAKE_OURSELVES = """\
import os, threading
def wake():
    while True:
        try:
            os.kill(os.getpid(), 18)
        except OSError:
            pass
for _ in range(3):
    threading.Thread(target=wake, daemon=True).start()
"""

# What a process has mapped that others could have too is found by its name in the mappings, or by writing to it.
SHARED_PAGES = """\
import ctypes, gc, mmap
gc.unfreeze()
pages = [thing for thing in gc.get_objects() if type(thing) is mmap.mmap]
number = 0
for page in pages:
    try:
        page[:4] = b'left'
        number += 1
    except ValueError:
        pass
print(number)
"""

FORGE_OTHERS = """
import gc, mmap
gc.unfreeze()
pages = [thing for thing in gc.get_objects() if type(thing) is mmap.mmap and not thing.closed and len(thing) < 4096]
def forge():
    time.sleep(0.2)
    while True:
        for page in pages:
            try:
                page[:] = (b'memory\\0Forged' + bytes(len(page)))[:len(page)]
            except (ValueError, IndexError, TypeError):
                pass
threading.Thread(target=forge, daemon=True).start()
print('done')
"""

OTHER_PROCESSES = (
    ATTEMPTS
    + """\
import time
def look(pid):
    if time.clock_gettime((~pid << 3) | 2) < 0:
        raise OSError(1, 'no clock')
for pid in (os.getppid(), *range(os.getpid() - 8, os.getpid())):
    for name, deed in (
        ('clock', look),
        ('group', os.getpgid),
        ('session', os.getsid),
        ('affinity', os.sched_getaffinity),
        ('existence', lambda pid: os.kill(pid, 0)),
    ):
        if pid > 0:
            attempt(f'{name} of {pid}', deed, pid)
"""
)

MACHINE_LOCKS = (
    ATTEMPTS
    + """\
import fcntl, struct
path = os.__file__
def flock():
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
def question():
    with open(path) as file:
        fcntl.fcntl(file, fcntl.F_GETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))
def lease():
    with open(path) as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
attempt('flock', flock)
attempt('question about a lock', question)
attempt('lease', lease)
"""
)

PASS_A_DESCRIPTOR = (
    ATTEMPTS
    + """\
import socket
ours, theirs = socket.socketpair()
attempt('descriptor', socket.send_fds, ours, [b'x'], [1])
"""
)

SECRET_OF_A_SESSION = """\
answer = 'battery'
with open('answer', 'w') as file:
    file.write(answer)
print('kept')
"""

LOOK_FOR_SESSIONS = """\
import os
found = []
for folder, names, files in os.walk(os.path.dirname(os.getcwd()) if os.getcwd() != '/' else '/nowhere'):
    found += [name for name in names + files if name != 'work']
print(found)
"""


def quiet_between(results: Sequence[Outcome], facts: Facts) -> str:
    """What counted in the first program did not go on counting before the second."""
    last = results[-1]
    if last.status == "ok" and last.stdout.strip().isdigit() and int(last.stdout) < 100:
        return ""
    return f"it ran while it was stopped: {described(last)}"


def same_as(first: int) -> Check:
    """The last program saw what the one at `first` saw."""

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        before, after = results[first], results[-1]
        if (before.status, after.status) == ("ok", "ok") and before.stdout == after.stdout:
            return ""
        return f"something was left: {described(before)}, then {described(after)}"

    return check


def refused_at(position: int) -> Check:
    """As `each_denied`, for one of several programs."""

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        return each_denied("EBUSY", "EINVAL", "ENOTSUP", "EEXIST")([results[position]], facts)

    return check


# The scientific server, where sessions are too.
SCIENCE = "import numpy\n"
BEGIN_COUNT = COUNT + "spent = time.process_time()"
END_COUNT = "import time\nprint(1 if time.process_time() - spent < 0.7 else 1000)"

KEEP_STREAMS = """\
import os
kept = [os.dup(1), os.dup(2)]
for fd in kept:
    os.pwrite(fd, b"x" * 4096, 0)
print("kept")
"""

USE_STREAMS = """\
import errno
for fd in kept:
    print(os.pread(fd, 4096, 0).count(b"x"))
    try:
        os.pwrite(fd, b"y", 8192)
    except OSError as error:
        print(errno.errorcode[error.errno])
    else:
        print("DONE")
"""

BEHAVIOURS = (
    Behaviour(
        name="files beside the own directory",
        area=AREA,
        code=(LOOK_AROUND, WRITE_AROUND, LOOK_AROUND),
        holds=every(refused_at(1), same_as(0)),
        harmless=False,
    ),
    Behaviour(
        name="files beside the directory of a session",
        area=AREA,
        code=(SCIENCE + LOOK_AROUND, WRITE_AROUND, SCIENCE + LOOK_AROUND),
        rollouts=("", "attacker", ""),
        holds=every(refused_at(1), same_as(0)),
        harmless=False,
    ),
    Behaviour(
        name="marks on the own directory",
        area=AREA,
        code=(LOOK_AROUND, MARK_OWN, LOOK_AROUND),
        holds=same_as(0),
        harmless=False,
    ),
    Behaviour(
        name="full file system",
        area=AREA,
        code=(FILL, ROOM),
        holds=prints("12"),
        harmless=False,
    ),
    Behaviour(
        name="full file system of a session",
        area=AREA,
        code=("1", FILL, ROOM),
        rollouts=("victim", "attacker", "victim"),
        holds=prints("12"),
        harmless=False,
    ),
    Behaviour(
        name="files of a session",
        area=AREA,
        code=(SECRET_OF_A_SESSION, LOOK_FOR_SESSIONS, SCIENCE + LOOK_FOR_SESSIONS),
        rollouts=("victim", "attacker", ""),
        holds=prints("[]"),
        harmless=False,
    ),
    Behaviour(
        name="timer that wakes a stopped session",
        area=AREA,
        code=(TIMER + BEGIN_COUNT, END_COUNT),
        rollouts=("attacker", "attacker"),
        holds=quiet_between,
        pause_s=2.0,
    ),
    Behaviour(
        name="threads that wake their session",
        area=AREA,
        code=(WAKE_OURSELVES + "import time\n" + BEGIN_COUNT, END_COUNT),
        rollouts=("attacker", "attacker"),
        holds=quiet_between,
        pause_s=2.0,
    ),
    Behaviour(
        name="pages of other programs",
        area=AREA,
        code=("1", SCIENCE + SHARED_PAGES),
        rollouts=("victim", ""),
        # The memory kept for telling of a lack of memory, and what its own end is told with.
        holds=prints("2"),
    ),
    Behaviour(
        name="pages of other sessions",
        area=AREA,
        code=("1", SHARED_PAGES),
        rollouts=("victim", "attacker"),
        holds=prints("1"),
    ),
    Behaviour(
        name="forged end of another session",
        area=AREA,
        code=("1", TIMER + FORGE_OTHERS, "import time\ntime.sleep(1)\nprint('mine')"),
        rollouts=("victim", "attacker", "victim"),
        holds=prints("mine"),
    ),
    Behaviour(
        name="questions about other processes",
        area=AREA,
        code=("1", SCIENCE + OTHER_PROCESSES),
        rollouts=("victim", ""),
        holds=refused_at(1),
    ),
    Behaviour(
        name="locks on files of the machine",
        area=AREA,
        code=MACHINE_LOCKS,
        holds=refused_at(0),
    ),
    Behaviour(
        name="descriptor handed on",
        area=AREA,
        code=PASS_A_DESCRIPTOR,
        holds=refused_at(0),
    ),
    Behaviour(
        name="streams that a session keeps",
        area=AREA,
        code=(KEEP_STREAMS, USE_STREAMS),
        rollouts=("attacker", "attacker"),
        holds=prints("0\nEPERM\n0\nEPERM"),
    ),
)
