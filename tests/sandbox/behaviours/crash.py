"""Ends that are not ends: crashes are reported, and nothing runs on after the program."""

from __future__ import annotations

from behaviours.checks import ends, every, prints, shows, within
from behaviours.entry import QUICK, Behaviour

AREA = "crash"

BEHAVIOURS = (
    Behaviour(
        name="segfault",
        area=AREA,
        code="import ctypes\nctypes.memset(8, 1, 64)",
        holds=every(ends("crashed"), shows("SIGSEGV")),
    ),
    Behaviour(
        name="abort",
        area=AREA,
        code="import os\nos.abort()",
        holds=every(ends("crashed"), shows("SIGABRT")),
    ),
    Behaviour(
        name="atexit bomb",
        area=AREA,
        code="import atexit, time\natexit.register(time.sleep, 10**6)\nprint('end')",
        holds=prints("end"),
        limits={"wall_s": 3.0},
    ),
    Behaviour(
        name="del bomb",
        area=AREA,
        code="""\
import time
class Clinger:
    def __del__(self, sleep=time.sleep):
        sleep(10**6)
clinger = Clinger()
print('end')
""",
        holds=prints("end"),
        limits={"wall_s": 3.0},
    ),
    Behaviour(
        name="str of exception loops",
        area=AREA,
        code="""\
class Endless(Exception):
    def __str__(self):
        while True:
            pass
raise Endless
""",
        holds=ends("timeout"),
        limits=QUICK,
    ),
    Behaviour(
        name="background thread",
        area=AREA,
        code="""\
import threading
def burn():
    while True:
        pass
threading.Thread(target=burn).start()
print('end')
""",
        holds=every(ends("ok", "timeout"), within(5)),
        limits=QUICK,
    ),
    Behaviour(
        name="stdout is none",
        area=AREA,
        code="import sys\nsys.stdout = None\n6 * 7",
        holds=ends("ok", "error"),
    ),
)
