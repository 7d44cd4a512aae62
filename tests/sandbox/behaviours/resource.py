"""Time, memory, disk, threads and processes: nothing that the code takes may be more than its share."""

from __future__ import annotations

from collections.abc import Sequence

from behaviours.checks import ATTEMPTS, NR, SYSTEM_CALL, denied, described, each_denied, ends, every, within
from behaviours.entry import QUICK, SHORT_WALL, Behaviour, Check, Facts, Outcome

AREA = "resource"
SMALL = {"memory_mb": 256}


def stopped_at(most: int) -> Check:
    """The program printed a number no larger than `most` and the word "stopped"; or it got nothing at all."""
    nothing = denied("ENOSPC", "EDQUOT", "EFBIG")

    def check(results: Sequence[Outcome], facts: Facts) -> str:
        (outcome,) = results
        words = outcome.stdout.split()
        if words[1:] == ["stopped"]:
            return "" if int(words[0]) <= most else f"it was stopped at {words[0]} only, not at {most}"
        return nothing(results, facts)

    return check


def bounded_threads(results: Sequence[Outcome], facts: Facts) -> str:
    """No more threads could be started, long before a thousand."""
    (outcome,) = results
    refused = outcome.error_type in ("RuntimeError", "MemoryError") and "DONE" not in outcome.stdout
    return "" if refused else f"threads should have run out: {described(outcome)}"


BEHAVIOURS = (
    Behaviour(
        name="infinite loop",
        area=AREA,
        code="turns = 0\nwhile True:\n    turns += 1",
        holds=ends("timeout"),
        limits=QUICK,
    ),
    Behaviour(
        name="sleep forever",
        area=AREA,
        code="import time\ntime.sleep(10**6)",
        holds=ends("timeout"),
        limits=SHORT_WALL,
    ),
    Behaviour(
        name="c call ignores signals",
        area=AREA,
        code="""\
import signal
def too_late(number, frame):
    raise TimeoutError
signal.signal(signal.SIGALRM, too_late)
signal.setitimer(signal.ITIMER_REAL, 0.1)
max(range(10**13))
""",
        holds=ends("timeout"),
        limits=QUICK,
    ),
    Behaviour(
        name="regex catastrophe",
        area=AREA,
        code="import re\nre.fullmatch(r'(?:\\w+,?)+;', 'b' * 64)",
        holds=ends("timeout"),
        limits=QUICK,
    ),
    Behaviour(
        name="sigterm ignored",
        area=AREA,
        code="""\
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    pass
""",
        holds=ends("timeout"),
        limits=QUICK,
    ),
    Behaviour(
        name="stop self",
        area=AREA,
        code="import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        holds=ends("timeout"),
        limits=SHORT_WALL,
    ),
    Behaviour(
        name="except everything",
        area=AREA,
        code="""\
while True:
    try:
        while True:
            pass
    except BaseException:
        continue
""",
        holds=ends("timeout"),
        limits=QUICK,
    ),
    Behaviour(
        name="memory one shot",
        area=AREA,
        code="hoard = bytearray(6 << 30)",
        holds=ends("memory"),
        limits=SMALL,
        harmless=False,
    ),
    Behaviour(
        name="memory growth",
        area=AREA,
        code="hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 20))",
        holds=every(ends("memory"), within(6)),
        limits=SMALL,
        harmless=False,
    ),
    Behaviour(
        name="memory numpy",
        area=AREA,
        code="import numpy\nhoard = numpy.ones((1 << 15, 1 << 15))",
        holds=ends("memory"),
        limits=SMALL,
        harmless=False,
    ),
    Behaviour(
        name="memory swallowed",
        area=AREA,
        code="""\
hoard = []
while True:
    try:
        hoard.append(bytearray(1 << 20))
    except MemoryError:
        pass
""",
        holds=ends("timeout"),
        limits={**QUICK, **SMALL},
        harmless=False,
    ),
    Behaviour(
        name="memory memfd",
        area=AREA,
        code="import os\nos.write(os.memfd_create('hoard'), bytes(1 << 20))\nprint('DONE')",
        holds=denied(),
    ),
    Behaviour(
        name="memory sysv shm",
        area=AREA,
        code=f"{SYSTEM_CALL}"
        f"segment = system_call({NR['shmget']}, 0, 1 << 20, 0o1600)\nlibc.shmctl(segment, 0, None)\nprint('DONE')",
        holds=denied(),
    ),
    Behaviour(
        name="disk fill",
        area=AREA,
        code="""\
total = 0
try:
    for number in range(24):
        with open(f'part{number}', 'wb', buffering=0) as part:
            for _ in range(8):
                total += part.write(bytes(1 << 20))
except OSError:
    if not total:
        raise
    print(total >> 20, 'stopped')
else:
    print('DONE')
""",
        holds=stopped_at(64),
        harmless=False,
    ),
    Behaviour(
        name="sparse file",
        area=AREA,
        code="import os\nwith open('hole', 'wb') as hole:\n    os.pwrite(hole.fileno(), b'x', 1 << 33)\nprint('DONE')",
        holds=denied("EFBIG", "ENOSPC", "EDQUOT"),
    ),
    Behaviour(
        name="inode bomb",
        area=AREA,
        code="""\
count = 0
try:
    for count in range(20_000):
        open(f'empty{count}', 'wb').close()
except OSError:
    if not count:
        raise
    print(count, 'stopped')
else:
    print('DONE')
""",
        holds=stopped_at(10_000),
        harmless=False,
    ),
    Behaviour(
        name="thread bomb",
        area=AREA,
        code="""\
import threading
for _ in range(1000):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print('DONE')
""",
        holds=bounded_threads,
        limits=SMALL,
        harmless=False,
    ),
    Behaviour(
        name="fork bomb",
        area=AREA,
        # Five generations are enough to see it, and leave the machine alive if it is not denied.
        code="import os\nfor _ in range(5):\n    os.fork()\nprint('DONE')",
        holds=denied(),
        harmless=False,
    ),
    Behaviour(
        name="c stack overflow",
        area=AREA,
        code="""\
import sys
sys.setrecursionlimit(1 << 30)
class Mirror:
    def __getattr__(self, name):
        return getattr(self, name + '')
Mirror().face
""",
        holds=ends("error", "memory", "crashed"),
    ),
    Behaviour(
        name="raise own limits",
        area=AREA,
        code=ATTEMPTS
        + """\
import resource
for name in ('AS', 'CPU', 'FSIZE', 'STACK', 'DATA'):
    kind = getattr(resource, 'RLIMIT_' + name)
    attempt(name, resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    attempt(name + ' by prlimit', resource.prlimit, 0, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
""",
        holds=each_denied(),
    ),
)
