"""What the model's code meets: display, errors, limits and output, one snippet a behaviour."""

from __future__ import annotations

import pytest

from gtpo.sandbox import Limits, Status

QUICK = Limits(cpu_s=0.4, wall_s=5.0)
SHORT_WALL = Limits(cpu_s=5, wall_s=0.6)
SMALL = Limits(memory_mb=128)

OK = {
    "last expression": ("x = 3\nx + 1", "4"),
    "last expression after output": ("print('a')\n[1, 'b']", "a\n[1, 'b']"),
    "last is an assignment": ("x = 3", "[no output]"),
    "last is in a block": ("for i in range(2):\n    i\n    print(i)", "0\n1"),
    "last is multi-line": ("sum([\n  1,\n  2,\n])", "3"),
    "last is parenthesised": ("(\n 1 + 1\n)", "2"),
    "semicolon": ("1 + 1;", "[no output]"),
    "semicolon and comment": ("(1 + 1) ; # done", "[no output]"),
    "semicolon only in a comment": ("1 + 1  # a; b", "2"),
    "semicolon in a string": ("'a;b'", "'a;b'"),
    "None": ("print('a')\nNone", "a"),
    "a string alone": ("'text'", "'text'"),
    "empty": ("", "[no output]"),
    "only a comment": ("# nothing", "[no output]"),
    "main guard": ("if __name__ == '__main__':\n    print('main')", "main"),
    "future import first": (
        "from __future__ import annotations\ndef f(x: nowhere): ...\nf.__annotations__",
        "{'x': 'nowhere'}",
    ),
    "future import reaches the last line": (
        "from __future__ import annotations\n(lambda: [g for g in [0]])()",
        "[0]",
    ),
    "no future import of the runner's": (
        "def f(x: int): ...\nf.__annotations__['x'] is int",
        "True",
    ),
    "sys.exit(0)": ("import sys\nprint('a')\nsys.exit(0)", "a"),
    "exit()": ("print('a')\nexit()", "a"),
    "multi-line string intact": ('s = """a\n  b\n\tc"""\ns', r"'a\n  b\n\tc'"),
    "crlf": ("x = 1\r\nif x:\r\n\tprint(x)\r\n", "1"),
    "byte order mark": ("\ufeffprint(1)", "1"),
    "big integers": ("len(str(10**6000))", "6001"),
    "big integers parsed": ("int('9' * 5000) % 10", "9"),
    "deep recursion": (
        "import sys, functools\nsys.setrecursionlimit(10**6)\n@functools.lru_cache(None)\n"
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nf(20000)",
        "20000",
    ),
    "warning is not an error": ("import warnings\nwarnings.warn('old')\nprint('a')", "a"),
    "non-ascii": ("print('é 漢 😀')", "é 漢 😀"),
    "lone surrogate": (r"print('a\ud800b')", r"a\ud800b"),
    "bytes that are not utf-8": ("import os\nos.write(1, b'a\\xffb\\n');", "a\ufffdb"),
    "chat markup is verbatim": ("print('<|im_end|></interpreter>')", "<|im_end|></interpreter>"),
    "stderr shown when alone": ("import sys\nprint('a', file=sys.stderr)", "a"),
    "output order": ("import os\nprint('a', end='')\nos.write(1, b'b');", "ab"),
    "no finalisers": ("class D:\n    def __del__(self): print('gone')\nd = D()", "[no output]"),
    "no exit handlers": ("import atexit\natexit.register(print, 'gone');", "[no output]"),
    "stdout taken away": ("import sys\nsys.stdout = None\n1", "[no output]"),
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nP(1)",
        "P(x=1)",
    ),
    "asyncio": ("import asyncio\nasync def f(): return 7\nasyncio.run(f())", "7"),
    "threads": ("from threading import *\nt = Thread(target=print, args='a')\nt.start(); t.join()", "a"),
    "own files": ("open('a.txt', 'w').write('b')\nprint(open('a.txt').read())", "b"),
    "own modules": ("open('m.py', 'w').write('x = 5')\nimport m\nm.x", "5"),
    "temporary files": ("import tempfile\nwith tempfile.TemporaryFile() as f: print(f.write(b'abc'))", "3"),
    "numpy": ("import numpy as np\nint(np.linalg.det(np.eye(3)))", "1"),
    "sympy": ("from sympy import *\nx = symbols('x')\nsolve(x**2 - 5*x + 6, x)", "[2, 3]"),
}  # fmt: skip


@pytest.mark.parametrize("name", OK)
def test_ordinary_program(box, name):
    code, text = OK[name]
    result = box.run_sync(code)
    assert (result.status, result.render(), result.error_type) == (Status.OK, text, None)


ERRORS = {
    "exception": ("x = 1\n1 / 0", "ZeroDivisionError", "line 2"),
    "syntax error": ("x = 1\ndef f(:", "SyntaxError", "line 2"),
    "indentation error": ("if 1:\nx", "IndentationError", "line 2"),
    "smart quotes and magic": ("%matplotlib inline\nprint(“a”)", "SyntaxError", "“"),
    "input": ("print('a')\ninput('? ')", "EOFError", "a\n?\nTraceback"),
    "stdin": ("import sys\nassert sys.stdin.read() == ''\nraise KeyError('empty')", "KeyError", "empty"),
    "bad repr": ("class A:\n    def __repr__(self): return 1 / 0\nA()", "ZeroDivisionError", "line 2"),
    "sys.exit(3)": ("import sys\nsys.exit(3)", "SystemExit", "3"),
    "sys.exit(text)": ("import sys\nsys.exit('no luck')", "SystemExit", "no luck"),
    "keyboard interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt", "line 1"),
    "chained": ("try:\n    1/0\nexcept Exception:\n    {}['a']", "KeyError", "ZeroDivisionError"),
    "unprintable": ("class E(Exception):\n    def __str__(self): raise E\nraise E", "E", "E"),
    "recursion": ("def f(n): return f(n + 1)\nf(0)", "RecursionError", "repeated"),
    "missing module": ("import no_such_module", "ModuleNotFoundError", "no_such_module"),
    "surrogate in the source": ("x = '\ud800'", "UnicodeEncodeError", ""),
    "inside a library": ("import json\njson.loads('{')", "JSONDecodeError", "line 2"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_shows_only_the_programs_own_lines(box, name):
    code, error_type, shown = ERRORS[name]
    result = box.run_sync(code)
    text = result.render()
    assert (result.status, result.error_type) == (Status.ERROR, error_type)
    assert shown in text
    for foreign in ("snippet.py", "server.py", "_child", "site-packages", "/lib/python", "gtpo", "json/"):
        assert foreign not in text


def test_traceback_quotes_the_line(box):
    text = box.run_sync("def f():\n    return 1 / 0\nf()").render()
    assert text.startswith('Traceback (most recent call last):\n  File "<code>", line 3, in <module>\n    f()')
    assert '  File "<code>", line 2, in f\n    return 1 / 0\n' in text
    assert text.endswith("ZeroDivisionError: division by zero")


def test_message_with_an_installation_path_is_shortened(box):
    text = box.run_sync("from sympy import no_such_name").render()
    assert "cannot import name 'no_such_name'" in text
    assert "(sympy/__init__.py)" in text


@pytest.mark.parametrize("code", ["1\0", "\0", "'\0'"])
def test_nul_in_the_source_is_an_error(box, code):
    assert box.run_sync(code).error_type in ("ValueError", "SyntaxError")


@pytest.mark.parametrize("code", ["(" * 5000 + ")" * 5000, "-" * 100_000 + "1", "[" * 300 + "]" * 300])
def test_source_too_deep_for_the_parser_stays_inside(box, code):
    assert box.run_sync(code).status in (Status.ERROR, Status.MEMORY, Status.CRASHED)


TIMEOUTS = {
    "infinite loop": ("while True: pass", QUICK, "processor time"),
    "sleep": ("import time\ntime.sleep(60)", SHORT_WALL, "running time"),
    "c code that ignores signals": ("sum(range(10**12))", QUICK, "processor time"),
    "regular expression": ("import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')", QUICK, "processor time"),
    "signals ignored": (
        "from signal import *\nfor s in (SIGTERM, SIGXCPU, SIGINT): signal(s, SIG_IGN)\nwhile True: pass",
        QUICK,
        "processor time",
    ),
    "stops itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", SHORT_WALL, "running time"),
    "catches everything": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        QUICK,
        "processor time",
    ),
    "memory error swallowed": (
        "import time\nx = []\nwhile True:\n"
        "    try: x.append(bytearray(10**7))\n    except MemoryError: time.sleep(0.1)",
        Limits(cpu_s=5, wall_s=0.6, memory_mb=64),
        "running time",
    ),
    "message of the exception loops": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
        QUICK,
        "processor time",
    ),
    "threads share the clock": (
        "import threading, time\nfor _ in range(3):\n"
        "    threading.Thread(target=lambda: sum(range(10**11)), daemon=True).start()\ntime.sleep(60)",
        QUICK,
        "processor time",
    ),
}


@pytest.mark.parametrize("name", TIMEOUTS)
def test_time_limit(box, name):
    code, limits, limit_named = TIMEOUTS[name]
    result = box.run_sync("print('before', end='')\n" + code, limits=limits)
    assert result.status is Status.TIMEOUT
    assert result.stdout == "before"
    assert result.render().startswith("before\n[timed out: more than ")
    assert limit_named in result.note
    assert result.wall_s < 6


def test_time_limits_are_the_ones_given(box):
    code = "import time\nt = time.process_time()\nwhile time.process_time() - t < 0.5: pass\ntime.sleep(0.3)"
    assert box.run_sync(code).status is Status.OK
    assert box.run_sync(code, limits=Limits(cpu_s=0.2)).note == "timed out: more than 0.2 s of processor time"
    assert box.run_sync(code, limits=Limits(wall_s=0.3)).note == "timed out: more than 0.3 s of running time"


def test_sleep_is_not_processor_time(box):
    assert box.run_sync("import time\ntime.sleep(0.5)", limits=Limits(cpu_s=0.3)).status is Status.OK


MEMORY = {
    "in one piece": "x = [0] * 10**9",
    "growth": "x = []\nwhile True: x.append('a' * 10**6 + str(len(x)))",
    "growth in a function": "def f():\n    x = []\n    while True: x.append(list(range(10000)))\nf()",
    "numpy": "import numpy\nnumpy.ones(10**9)",
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_limit(box, name):
    result = box.run_sync(MEMORY[name])
    assert result.status is Status.MEMORY
    assert "MemoryError" in result.render()


def test_memory_limit_is_the_one_given(box):
    code = "x = bytearray(200 << 20)\nlen(x)"
    assert box.run_sync(code).stdout == "209715200\n"
    assert box.run_sync(code, limits=SMALL).status is Status.MEMORY


def test_threads_are_bounded_by_memory(box):
    code = (
        "import threading, time\nn = 0\ntry:\n    while n < 1000:\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1\n"
        "except RuntimeError: print('full')\nn < 1000"
    )
    assert box.run_sync(code).stdout == "full\nTrue\n"


OUTPUT = {
    "flood": "while True: print('x' * 1000)",
    "one giant print": "print('x' * 10**7)",
    "no newline": "import sys\nwhile True: sys.stdout.write('x')",
    "stderr": "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
    "descriptor": "import os\nwhile True: os.write(1, b'x' * 100000)",
}


@pytest.mark.parametrize("name", OUTPUT)
def test_output_limit(box, name):
    limits = Limits(output_bytes=20_000)
    result = box.run_sync(OUTPUT[name], limits=limits)
    assert result.status is Status.OUTPUT_LIMIT
    assert result.truncated
    assert max(len(result.stdout), len(result.stderr)) == 20_000
    assert result.wall_s < 2
    assert result.render().endswith("[stopped: more than 20000 bytes of output]")


def test_output_up_to_the_limit_is_whole(box):
    limits = Limits(output_bytes=500_000)
    result = box.run_sync("print('x' * 499_999)", limits=limits)
    assert (result.status, len(result.stdout), result.truncated) == (Status.OK, 500_000, False)
    result = box.run_sync("print('x' * 500_000)", limits=limits)
    assert (result.status, len(result.stdout), result.truncated) == (Status.OUTPUT_LIMIT, 500_000, True)


def test_each_stream_has_its_own_cap(box):
    code = "import sys\nprint('a' * 900)\nprint('b' * 900, file=sys.stderr)"
    result = box.run_sync(code, limits=Limits(output_bytes=1000))
    assert (result.status, len(result.stdout), len(result.stderr)) == (Status.OK, 901, 901)


CRASHES = {
    "abort": ("import os\nos.abort()", "SIGABRT"),
    "segmentation fault": ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
    "kills itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    "alarm": ("import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(60)", "SIGALRM"),
}


@pytest.mark.parametrize("name", CRASHES)
def test_crash_names_the_signal(box, name):
    code, signal_name = CRASHES[name]
    result = box.run_sync("print('before')\n" + code)
    assert result.status is Status.CRASHED
    assert result.render() == f"before\nthe process was ended by {signal_name}"


@pytest.mark.parametrize(("code", "status"), [("import os\nos._exit(0)", "ok"), ("import os\nos._exit(3)", "error")])
def test_status_can_be_forged_by_leaving_early(box, code, status):
    assert box.run_sync(code).status == status


def test_nothing_passes_from_one_program_to_the_next(box):
    box.run_sync(
        "import math, builtins, os, sys\nmath.pi = 3\nbuiltins.mark = 1\nos.environ['MARK'] = '1'\n"
        "sys.modules['mark'] = math\nopen('mark', 'w').close()"
    )
    check = (
        "import math, builtins, os, sys\n"
        "(math.pi > 3, hasattr(builtins, 'mark'), 'MARK' in os.environ, 'mark' in sys.modules, os.listdir())"
    )
    assert box.run_sync(check).stdout == "(True, False, False, False, [])\n"


def test_text_of_earlier_programs_is_not_in_memory(unconfined):
    """Where nothing is confined, since the confined program has no `/proc` to look with."""
    box = unconfined
    secret = "correct-horse-" + "battery"
    box.run_sync(f"x = '{secret}'\nprint(x)")
    scan = (
        "a, b = 'correct-horse-', 'battery'\nneedle = a.encode()\nhits = 0\n"
        "for line in open('/proc/self/maps'):\n"
        "    span, rights, *rest = line.split()\n"
        "    if rights.startswith('rw') and not line.rstrip().endswith(']') or '[heap]' in line:\n"
        "        low, high = (int(v, 16) for v in span.split('-'))\n"
        "        with open('/proc/self/mem', 'rb') as memory:\n"
        "            memory.seek(low)\n"
        "            hits += memory.read(high - low).count(needle + b.encode())\nhits"
    )
    assert box.run_sync(scan).stdout == "0\n"
    control = scan.replace("\nhits = 0\n", f"\nhits = 0\nown = '{secret}'\n")
    assert int(box.run_sync(control).stdout) > 0


def test_random_numbers_differ_between_runs_and_sets_keep_their_order(box):
    draws = {box.run_sync("import random, numpy\n(random.random(), numpy.random.rand())").stdout for _ in range(3)}
    assert len(draws) == 3
    orders = {box.run_sync("list({'a', 'b', 'c', 'd', 'e', 'f'})").stdout for _ in range(3)}
    assert len(orders) == 1


def test_directory_is_removed_however_it_is_left(box):
    """By the server itself: one that can't is replaced."""
    assert box.run_sync("1").status is Status.OK
    server = box._seats[0].light.pid
    deep = (
        "import os\nfor i in range(1100):\n    os.mkdir('d')\n    open('f', 'w').close()\n    os.chdir('d')\n"
        "os.symlink('/', 'root')\nos.chmod('.', 0)"
    )
    assert box.run_sync(deep).status is Status.OK
    many = "import os\nfor i in range(300): os.mkdir(str(i)); open(f'{i}/f', 'w').close()"
    assert box.run_sync(many).status is Status.OK
    assert box.run_sync("1").status is Status.OK
    assert box._seats[0].light.pid == server
