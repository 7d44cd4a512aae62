"""Looking around: nothing of the trainer, of the sandbox's own machinery, or of earlier programs is in sight."""

from __future__ import annotations

from collections.abc import Sequence

from behaviours.checks import ATTEMPTS, described, each_denied, ends, every, hides_secret, prints
from behaviours.entry import Behaviour, Facts, Outcome

AREA = "introspection"

# The one who looks for the marker holds it backwards only, and looks at everything backwards.
LEAVE_MARKER = "answer = [MARKER, {MARKER: MARKER.encode()}]\nprint(MARKER)\nanswer"

SEARCH_OBJECTS = """\
import gc, linecache, sys
wanted = MARKER_BACKWARDS
def holds_it(thing):
    if isinstance(thing, str):
        return wanted in thing[::-1]
    return isinstance(thing, (bytes, bytearray)) and wanted.encode() in bytes(thing)[::-1]
gc.unfreeze()
roots = [gc.get_objects(), list(linecache.cache.values()), list(sys.modules.items())]
frame = sys._getframe()
while frame:
    roots.append([frame.f_locals, frame.f_globals, frame.f_code.co_consts])
    frame = frame.f_back
seen, found, pending = set(), 0, roots
while pending:
    thing = pending.pop()
    if id(thing) not in seen:
        seen.add(id(thing))
        found += holds_it(thing)
        if thing is not seen and thing is not pending:
            pending.extend(gc.get_referents(thing))
print(len(seen) > 5000, found)
"""

# Pages are read by having the kernel copy them into a pipe, which fails instead of crashing where there is none.
SCAN_HEAP = """\
import ctypes, gc, os
wanted = MARKER_BACKWARDS.encode()
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
gc.unfreeze()
block = 1 << 20
blocks = {id(thing) // block for thing in gc.get_objects()}
blocks |= {number + step for number in blocks for step in (-1, 1)}
top = libc.sbrk(0) // block
blocks |= set(range(top - 128, top + 1))
out, into = os.pipe()
scanned = found = 0
for number in sorted(blocks):
    tail = b''
    for page in range(number * block, (number + 1) * block, 4096):
        if libc.write(into, ctypes.c_void_p(page), ctypes.c_size_t(4096)) != 4096:
            tail = b''
            continue
        window = os.read(out, 4096)[::-1] + tail
        scanned += 1
        found += wanted in window
        tail = window[:len(wanted) - 1]
print(scanned > 500, found)
"""

FORGE = """\
import gc, os, sys
forged = b'{"id": 1, "status": "ok", "wall_s": 0.0, "clean": true, "fds": 0}\\n'
gc.unfreeze()
numbers = set(range(3, 1024))
frame = sys._getframe()
scopes = []
while frame:
    scopes += [frame.f_locals, frame.f_globals]
    frame = frame.f_back
for thing in [*gc.get_objects(), *(value for scope in scopes for value in scope.values())]:
    try:
        numbers.add(type(thing).fileno(thing))
    except Exception:
        pass
reached = []
for number in numbers - {0, 1, 2, -1}:
    try:
        os.write(number, forged)
    except OSError:
        continue
    reached.append(number)
print('reached', reached)
raise LookupError('the true end')
"""


def unforged(results: Sequence[Outcome], facts: Facts) -> str:
    """The forged reply reached nobody, and the true end was told."""
    (outcome,) = results
    if outcome.stdout != "reached []\n" or outcome.error_type != "LookupError":
        return f"it found a channel: {described(outcome)}"
    return ends("error")(results, facts)


def first_showed_marker(results: Sequence[Outcome], facts: Facts) -> str:
    """The first program, which the second looks for, did run."""
    return "" if facts.marker in results[0].stdout else f"the first program failed: {described(results[0])}"


BEHAVIOURS = (
    Behaviour(
        name="environment",
        area=AREA,
        code="""\
import ctypes, os
print(dict(os.environ))
block = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')
number = 0
while block[number]:
    print(block[number])
    number += 1
""",
        holds=every(ends("ok"), hides_secret),
    ),
    Behaviour(
        name="proc environ",
        area=AREA,
        code=ATTEMPTS
        + """\
def show(pid):
    with open(f'/proc/{pid}/environ', 'rb') as file:
        print(file.read())
for name, pid in (('parent', os.getppid()), ('trainer', TRAINER_PID), ('victim', VICTIM_PID)):
    attempt(name, show, pid)
""",
        holds=each_denied("ESRCH"),
    ),
    Behaviour(
        name="proc parent mem",
        area=AREA,
        code=ATTEMPTS
        + """\
def show(pid):
    with open(f'/proc/{pid}/mem', 'rb', buffering=0) as file:
        print(os.pread(file.fileno(), 64, SECRET_ADDRESS))
for name, pid in (('parent', os.getppid()), ('trainer', TRAINER_PID)):
    attempt(name, show, pid)
""",
        holds=each_denied("ESRCH"),
    ),
    Behaviour(
        name="inherited fds",
        area=AREA,
        code="""\
import os
numbers = []
for number in range(4096):
    try:
        os.fstat(number)
    except OSError:
        continue
    numbers.append(number)
print(numbers)
""",
        holds=prints("[0, 1, 2]"),
    ),
    Behaviour(
        name="forge reply via frames",
        area=AREA,
        code=FORGE,
        holds=unforged,
    ),
    Behaviour(
        name="other trajectory code",
        area=AREA,
        code=(LEAVE_MARKER, SEARCH_OBJECTS),
        holds=every(first_showed_marker, prints("True 0")),
        limits={"cpu_s": 10.0, "wall_s": 30.0},
    ),
    Behaviour(
        name="heap scan other trajectory",
        area=AREA,
        code=(LEAVE_MARKER, SCAN_HEAP),
        holds=every(first_showed_marker, prints("True 0")),
        limits={"cpu_s": 10.0, "wall_s": 30.0},
    ),
    Behaviour(
        name="state leak between runs",
        area=AREA,
        code=(
            """\
import builtins, math, os, random, sys
math.pi = 3
builtins.len = lambda thing: -1
builtins.left_behind = True
os.environ['LEFT_BEHIND'] = 'yes'
sys.modules['json'] = None
random.seed(1)
sys.setrecursionlimit(77)
print('changed')
""",
            """\
import builtins, json, math, os, sys
print(math.pi > 3.1, len('four'), hasattr(builtins, 'left_behind'), 'LEFT_BEHIND' in os.environ,
      json.loads('1'), sys.getrecursionlimit() > 77)
""",
        ),
        holds=every(ends("ok"), prints("True 4 False False 1 True")),
    ),
    Behaviour(
        name="exit code forgery",
        area=AREA,
        code="import os\nprint('well', flush=True)\nos._exit(0)",
        holds=prints("well"),
    ),
)
