"""Arbitrary programs, output, answers and replies: the sandbox never raises, and works afterwards.

The examples are the same ones each time. `GTPO_FUZZ=20` tries twenty times as many, new ones each time; give pytest
`--timeout=0` with it.
"""

from __future__ import annotations

import contextlib
import json
import keyword
import os
import socket
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gtpo.sandbox import ExecResult, Limits, Status, _fusion
from gtpo.sandbox._child import seccomp
from gtpo.sandbox._child.channel import Channel
from gtpo.sandbox._fusion import Ended, RetryableError
from gtpo.sandbox._worker import Call, Launch, Worker
from gtpo.sandbox.levels import REQUIREMENTS

confinement = pytest.mark.skipif(not seccomp.supported(), reason="no confinement for this system")

TIMES = int(os.environ.get("GTPO_FUZZ", "1"))
SHORT = Limits(cpu_s=0.5, wall_s=2.0, memory_mb=64, output_bytes=2000)

WORDS = [
    *keyword.kwlist, *keyword.softkwlist, *"()[]{}:;,.@=+-*/%&|^~<>!?$`\\\"'#",
    "==", ":=", "->", "**", "//", "...", "'''", '"""', "f'", "f'{", "}'", "b'\\x", "\\N{", "'\\ud800'", "0x", "0b2",
    "1_0", "1e999", "9" * 5000, "0777", "1j", "\n", "\r", "\r\n", "\\\n", "\n    ", "\n\t", "\x0c", "\ufeff", "\0",
    "# coding: utf-16\n", "from __future__ import annotations", "print", "_", "x", "self", "__name__", "__builtins__",
    "int", "str", "len", "range(3)", "exec", "eval", "globals()", "input()", "open('a', 'w')", "'x' * 3000", "é", "ª",
]  # fmt: skip
DEEDS = [
    "1 / 0", "x = 1", "x", "x;", "print(x)", "raise SystemExit", "raise SystemExit('bye')", "raise SystemExit(3)",
    "raise KeyboardInterrupt", "raise MemoryError", "raise GeneratorExit", "raise BaseException", "assert False",
    "sys.exit(-1)", "sys.exit([1])", "os._exit(0)", "os._exit(7)", "os.abort()", "os.kill(os.getpid(), 9)",
    "signal.raise_signal(2)", "signal.raise_signal(13)", "signal.raise_signal(14)", "signal.signal(2, signal.SIG_IGN)",
    "signal.signal(14, lambda *_: 1 / 0)", "signal.setitimer(0, 0.001, 0.001)", "bytearray(1 << 40)",
    "kept = [bytearray(1 << 20) for _ in range(100)]", "import atexit\natexit.register(print, 'late')",
    "sys.stdout = None", "sys.stdout.close()", "sys.stdout = sys.stderr", "sys.stderr = 5", "sys.stdout.detach()",
    "sys.__stdout__.buffer.close()", "os.close(0)", "os.close(1)", "os.close(2)", "os.dup2(1, 2)", "os.dup(1)",
    "os.lseek(1, 0, 2)", "os.lseek(1, 1 << 40, 0)", "os.lseek(2, 0, 0)", "os.write(1, b'\\xff' * 3000)",
    "os.write(2, b'x' * 9000)", "os.ftruncate(1, 0)", "print('\\ud800')", "print('x' * 1999)", "print('x', end='')",
    "sys.setrecursionlimit(10**9)", "sys.setrecursionlimit(40)", "def f(): return f()", "f()", "f = lambda: [f()]",
    "sys.settrace(lambda *_: 1 / 0)", "sys.setprofile(lambda *_: 1 / 0)", "sys.excepthook = None", "gc.disable()",
    "sys.modules.clear()", "del sys.modules['__main__']", "sys.path.clear()", "sys.path.append(None)",
    "builtins.print = builtins.repr = None", "vars(builtins).clear()", "del __builtins__", "globals().clear()",
    "linecache.cache.clear()", "traceback.TracebackException = None", "builtins.isinstance = lambda *_: True",
    "threading.Thread(target=lambda: 1 / 0).start()", "threading.Thread(target=print, args=(1,)).start()",
    "import ctypes\nctypes.string_at(0)", "while True: pass", "os.chdir('/')", "open(0).read()",
    "files = []\nwhile True: files.append(open('/dev/null'))", "os.mkdir('a' * 200)",
    "os.chmod('.', 0)", "os.rmdir(os.getcwd())", "os.umask(0o777)", "raise ExceptionGroup('', [ValueError()] * 3)",
    "raise type('E\\ud800', (Exception,), {})('\\udfff')",
    "try: 1 / 0\nexcept Exception as e:\n    e.__context__ = e.__cause__ = e\n    raise",
]  # fmt: skip
PROGRAMS = [
    "total = 0\nfor i in range(10):\n    if i % 2:\n        total += i\nprint(total)\ntotal",
    "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\n\n\nprint(f'{f(10)!r:>5}')",
    "class A:\n    '''text'''\n    x: int = 1\n\n    @property\n    def y(self): return self.x\n\nA().y;",
    "from __future__ import annotations\nimport math\nmath.sqrt(2)  # a root; really",
    "try:\n    {}['k']\nexcept KeyError as e:\n    raise ValueError('no') from e\nfinally:\n    print('end')",
    "[x ** 2 for x in range(5) if x]; (lambda *a, **k: (a, k))(1, b=2)",
    "import re\nre.findall(r'\\d+', '''1 22\n333''')\\\n    [0]",
]
BASES = ["object", "Exception", "BaseException", "SystemExit", "MemoryError", "SyntaxError", "KeyError", "str", "int"]
METHODS = ["repr", "str", "eq", "bool", "hash", "len", "init", "del", "format", "getattribute", "iter", "new"]
BODIES = [
    "1 / 0", "raise SystemExit", "raise SystemExit(A())", "raise MemoryError", "raise KeyboardInterrupt",
    "raise Odd", "return None", "return a[0]", "return '\\ud800'", "return str(a[0])",
]  # fmt: skip
USES = [
    "A()", "raise A()", "raise A", "raise SystemExit(A())", "raise Exception(A())", "raise ValueError from A()",
    "print(A())", "raise ExceptionGroup('', [A()])", "A.__name__ = A()\nraise A()", "e = A()\ne.args = e\nraise e",
    "e = A()\ne.__notes__ = e\nraise e", "import sys\nsys.stdout = A()", "import sys\nsys.exit(A)",
    "import sys\nsys.stderr = A()\n1 / 0", "__name__ = A()\n1 / 0", "import sys\nsys.path.append(A())\n1 / 0",
]  # fmt: skip
MEDDLING = [
    "os.close(3)", "os.dup2(0, 3)", "os.read(3, 9)", "os.write(3, b'.')", "socket.socket(fileno=os.dup(3)).shutdown(1)",
    "socket.send_fds(socket.socket(fileno=os.dup(3)), [b'.'], [0, 1, 2])",
    "os.set_blocking(3, False)\nwhile True: os.write(3, b'.' * 4096)",
]  # fmt: skip

texts = st.text(st.characters(), max_size=60)
glued = st.builds(lambda words, glue: glue.join(words), st.lists(st.sampled_from(WORDS)), st.sampled_from(["", " "]))
deeds = st.lists(st.sampled_from(DEEDS), min_size=1, max_size=5).map(
    lambda lines: "\n".join(["import sys, os, builtins, gc, signal, threading, traceback, linecache", *lines])
)


@st.composite
def mutants(draw) -> str:
    """A valid program with one to four places spoiled."""
    text = draw(st.sampled_from(PROGRAMS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        piece = draw(st.just("") | st.sampled_from(WORDS) | st.text(st.characters(), max_size=2))
        text = text[:start] + piece + text[start + draw(st.integers(0, 6)) :]
    return text


@st.composite
def hooked(draw) -> str:
    """A program that leaves an object with odd special methods to whoever looks at it."""
    methods = [
        f"    def __{name}__(*a): {draw(st.sampled_from(BODIES))}"
        for name in draw(st.lists(st.sampled_from(METHODS), min_size=1, max_size=3, unique=True))
    ]
    odd = "class Odd(BaseException):\n    def __str__(self): 1 / 0"
    meta = "class M(type):\n    __name__ = property(lambda self: 1 / 0)"
    head = f"class A({draw(st.sampled_from(BASES))}{draw(st.sampled_from(['', ', metaclass=M']))}):"
    return "\n".join([odd, meta, head, *methods, draw(st.sampled_from(USES))])


@st.composite
def hogs(draw) -> str:
    """A program that fills its memory with something, kept somewhere."""
    item = draw(st.sampled_from(["[0]", "(n,)", "n", "str(n)", "{n: n}", "bytearray(n)", "object()", "{n}"]))
    step = draw(st.sampled_from(["kept.append({})", "kept = [kept, {}]", "kept = kept, {}", "kept += [{}] * 1000"]))
    place = draw(st.sampled_from(["kept", "self.kept", "builtins.kept"]))
    grow = f"n = 0\nwhile True:\n    n += 1\n    {step.replace('kept', place).format(item)}"
    lines = ["import builtins", "class self: kept = []", "kept = builtins.kept = []"]
    if draw(st.booleans()):
        return "\n".join([*lines, grow])
    inside = f"kept = []\n{grow}".replace("\n", "\n    ")
    return "\n".join([*lines, f"def f():\n    {inside}", "f()"])


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        database=None,
        derandomize=TIMES == 1,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def check(result: ExecResult) -> None:
    """What holds of the result of any program."""
    assert isinstance(result, ExecResult)
    assert isinstance(result.status, Status)
    assert result.status is not Status.TOOL_FAILURE, result.note
    assert result.truncated == (result.status is Status.OUTPUT_LIMIT) or result.status is Status.TIMEOUT
    result.render().encode()


def answers(box) -> None:
    """Whether the sandbox still runs a program as it should."""
    after = box.run_sync("1+1")
    assert (after.status, after.stdout, after.stderr) == (Status.OK, "2\n", "")


@confinement
@fuzz(120)
@given(code=texts | glued | mutants())
@example(code="'\ud800'")
@example(code="x = '\0'")
@example(code="(" * 5000)
@example(code="-" * 100_000 + "1")
@example(code="x" * 1_000_000)
def test_any_program(box, code):
    check(box.run_sync(code, limits=SHORT))
    answers(box)


@confinement
@fuzz(60)
@given(code=deeds)
@example(code="import sys\nsys.settrace(lambda *_: 1 / 0)\nraise SystemExit(3)")
def test_any_deed(box, code):
    check(box.run_sync(code, limits=SHORT))
    answers(box)


@confinement
@fuzz(40)
@given(codes=st.lists(texts | glued | mutants(), min_size=1, max_size=3), fresh=st.booleans())
def test_any_programs_of_a_session(box, codes, fresh):
    with contextlib.closing(box.session(fresh=fresh)) as session:
        for code in codes:
            check(session.run_sync(code, limits=SHORT))
        assert session.run_sync("import os\nos.write(1, b'ran');").stdout == "ran"
    answers(box)


@confinement
@fuzz(40)
@given(codes=st.lists(deeds, min_size=1, max_size=2), fresh=st.booleans())
@example(codes=["open(0).read()"], fresh=False)
@example(codes=["files = []\nwhile True: files.append(open('/dev/null'))"], fresh=False)
@example(codes=["import sys\nsys.settrace(lambda *_: 1 / 0)\nraise SystemExit(3)"], fresh=True)
def test_any_deeds_of_a_session(box, codes, fresh):
    with contextlib.closing(box.session(fresh=fresh)) as session:
        for code in codes:
            check(session.run_sync(code, limits=SHORT))
        last = session.run_sync("import os\nos.write(1, b'ran');", limits=SHORT)
        check(last)
        assert last.status is not Status.OK or "ran" in last.stdout
    answers(box)


@confinement
@fuzz(60)
@given(code=hooked())
@example(code="class A:\n    def __repr__(self): 1 / 0\nraise SystemExit(A())")
@example(code="class A:\n    def __eq__(self, other): 1 / 0\nraise SystemExit(A())")
@example(
    code="class M(type):\n    __name__ = property(lambda self: 1 / 0)\nclass E(Exception, metaclass=M): 0\nraise E"
)
def test_any_special_method(box, code):
    check(box.run_sync(code, limits=SHORT))
    answers(box)


@confinement
@fuzz(20)
@given(code=hogs(), memory_mb=st.integers(16, 64))
@example(code="x = []\nwhile True: x.append([0])", memory_mb=64)
@example(code="def f():\n    x = None\n    while True: x = x,\nf()", memory_mb=32)
def test_any_way_to_run_out_of_memory(box, code, memory_mb):
    result = box.run_sync(code, limits=Limits(cpu_s=5.0, wall_s=20.0, memory_mb=memory_mb))
    assert (result.status, result.error_type) == (Status.MEMORY, "MemoryError")
    answers(box)


@confinement
@fuzz(12)
@given(deed=st.lists(st.sampled_from(MEDDLING), min_size=1, max_size=3))
def test_a_session_that_meddles_with_its_channel_harms_only_itself(box, deed):
    with contextlib.closing(box.session()) as session:
        for code in ("import os, socket\n" + "\n".join(deed), "x = 1", "print(x)"):
            assert isinstance(session.run_sync(code, limits=replace(SHORT, wall_s=0.5)).status, Status)
    answers(box)


@st.composite
def output(draw, most: int) -> bytes:
    """Up to four times `most` bytes, or about a page."""
    spelled = st.text(st.characters(), min_size=1, max_size=4).map(lambda text: text.encode("utf-8", "surrogatepass"))
    pattern = draw(st.binary(min_size=1, max_size=9) | spelled)
    size = draw(st.integers(0, 4 * most) | st.sampled_from([most - 1, most, most + 1, 4095, 4096, 4097]))
    return (pattern * (size // len(pattern) + 1))[:size]


@confinement
@fuzz(60)
@given(data=st.data(), most=st.sampled_from([1, 7, 64, 1000, 4095, 4096, 5000]), part=st.sampled_from([100, 10**6]))
def test_any_output(box, data, most, part):
    out, err = data.draw(output(most)), data.draw(output(most))
    write = f"def write(fd, data):\n    for i in range(0, len(data), {part}): os.write(fd, data[i : i + {part}])\n"
    code = f"import os\n{write}write(1, {out!r})\nwrite(2, {err!r})"
    result = box.run_sync(code, limits=replace(SHORT, output_bytes=most))
    check(result)
    assert result.stdout == out[:most].decode("utf-8", "replace")
    if max(len(out), len(err)) <= most:
        assert (result.status, result.stderr, result.truncated) == (Status.OK, err.decode("utf-8", "replace"), False)
    else:
        assert (result.status, result.truncated) == (Status.OUTPUT_LIMIT, True)
        assert len(out) > most or result.stderr == err[:most].decode("utf-8", "replace")
    answers(box)


notes = st.text(st.characters(), max_size=30)


@fuzz(150)
@given(
    result=st.builds(ExecResult, st.sampled_from(Status), texts, texts, note=notes),
    repeat=st.sampled_from([1, 10, 1000]),
    max_chars=st.integers(-10, 3000) | st.integers(),
)
def test_any_result_is_rendered(result, repeat, max_chars):
    result = replace(result, stdout=result.stdout * repeat, stderr=result.stderr * repeat)
    text, whole = result.render(max_chars), result.render(10**9)
    room_for_notes = len("\n[... 100000 characters cut ...]\n") + len(f"\n[{result.note}]")
    assert len(text) <= max(max_chars, room_for_notes)
    assert text == whole or len(whole) > max_chars


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, -(10**400)]) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def near_answers(draw) -> bytes:
    """An answer of the right shape, with arbitrary values in some of its fields and some of them left out."""
    run = {"status": "Finished", "execution_time": 0.5, "return_code": 0, "stdout": "1\n", "stderr": ""}
    answer = {"status": draw(st.sampled_from(["Success", "Failed", "SandboxError"])), "message": "", "run_result": run}
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from([run, run, answer]))
        name = draw(st.sampled_from(["message", *place]))
        if draw(st.integers(0, 4)):
            place[name] = draw(values | st.sampled_from(["TimeLimitExceeded", "1.5", "٣", "0x1", -9, 137, 1 << 40]))
        else:
            place.pop(name, None)
    return json.dumps(answer).encode()


@fuzz(300)
@given(body=st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()) | near_answers())
@example(body=b"[" * 100_000)
@example(body=b'{"a":' * 100_000)
@example(body=b"9" * 5000)
@example(body=b'{"status": "Success", "run_result": {"status": "Finished", "return_code": 1e999}}')
@example(
    body=b'{"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": "", "stderr": "", '
    b'"execution_time": %s}}' % (b"9" * 400)
)
def test_any_answer_of_a_remote_server(body):
    try:
        result = _fusion.result(_fusion.ended(body), SHORT, "word")
    except RetryableError:
        return
    assert isinstance(result.status, Status)
    result.render().encode()


@fuzz(200)
@given(
    ended=st.builds(Ended, st.none() | st.integers(-200, 300) | st.integers(), texts, texts, st.floats(0, 9)),
    report=st.none() | st.from_regex(_fusion._REPORT, fullmatch=True) | texts,
    after=texts,
    most=st.integers(1, 80),
)
def test_any_end_of_a_remote_process(ended, report, after, most):
    if report is not None:
        ended = replace(ended, stderr=f"{ended.stderr}word{report}\n{after}")
    try:
        result = _fusion.result(ended, replace(SHORT, output_bytes=most), "word")
    except RetryableError:
        return
    assert isinstance(result.status, Status)
    assert result.status is not Status.TOOL_FAILURE
    assert len(result.stdout) <= most
    assert len(result.stderr) <= most + len("the process was ended by signal \n") + len(str(ended.code))
    result.render().encode()


class ScriptedWorker(Worker):
    """A worker whose server says `said` and hangs up, each time that it is started."""

    def __init__(self, said: bytes) -> None:
        super().__init__(Launch(confine=True, namespaces=False))
        self.said = said

    def start(self) -> None:
        if self._channel is None:
            ours, self.theirs = socket.socketpair()
            self.theirs.sendall(self.said)
            self.theirs.shutdown(socket.SHUT_WR)
            self._channel, self.hello = Channel(ours), {"refused": list(REQUIREMENTS["namespaces"])}

    def stop(self, kill: bool = False) -> None:
        super().stop(kill)
        self.theirs.close()


@st.composite
def near_replies(draw) -> bytes:
    """A reply of the right shape, with arbitrary values in some of its fields and some of them left out."""
    reply = {"id": 1, "wall_s": 0.1, "cpu_s": 0.1, "max_rss_kib": 9, "status": "ok", "clean": True, "fds": 0}
    for name in draw(st.lists(st.sampled_from([*reply, "detail", "error_type", "lost", "opened"]), max_size=3)):
        if draw(st.booleans()):
            reply[name] = draw(values | st.sampled_from([status.value for status in Status]))
        else:
            reply.pop(name, None)
    return json.dumps(reply).encode()


replies = st.lists(st.binary(max_size=80) | values.map(lambda v: json.dumps(v).encode()) | near_replies(), max_size=3)


@confinement
@fuzz(150)
@given(said=replies.map(b"\n".join), end=st.sampled_from([b"\n", b""]))
@example(said=b"\xff", end=b"\n")
@example(said=b"[]", end=b"\n")
@example(said=b'{"fds": 0, "clean": true}', end=b"\n")
def test_any_reply_of_a_server(confined, said, end):
    worker = ScriptedWorker(said + end)
    confined._seats[0].failures = 0
    result = confined._run(confined._seats[0], worker, "1+1", SHORT, Call(), {"seed": None})
    worker.stop()
    assert isinstance(result.status, Status)
