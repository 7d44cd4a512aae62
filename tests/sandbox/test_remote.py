"""The remote sandbox, against a server on this machine that speaks SandboxFusion's API."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest
from fusion_server import FusionServer, answer
from serving import serving

from gtpo.errors import ConfigError, SandboxError
from gtpo.sandbox import Limits, Sandbox, Status, _endpoints, remote
from gtpo.sandbox.remote import SandboxFusionSandbox

SANDBOX_ERROR = {"status": "SandboxError", "message": "no room", "run_result": None}
DEAD = "http://127.0.0.1:9"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(_endpoints, "BACKOFF_S", 0.01)
    with serving(FusionServer()) as server:
        yield server


@pytest.fixture
def box(server):
    sandbox = SandboxFusionSandbox(server.url)
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("localhost:8080", {}),
        ("http://", {}),
        ("ftp://host", {}),
        (DEAD, {"concurrency": 0}),
        (DEAD, {"concurrency": True}),
        (DEAD, {"retries": -1}),
        (DEAD, {"compile_timeout_s": 0.0}),
    ],
)
def test_settings_out_of_range(url, options):
    with pytest.raises(ConfigError):
        SandboxFusionSandbox(url, **options)


def test_is_a_sandbox_that_claims_nothing(box):
    assert isinstance(box, Sandbox)
    level = box.level()
    assert level.name == "remote"
    assert not any(value for value in vars(level).values() if isinstance(value, bool))
    assert "unknown" in level.sentence


def test_the_request_is_sandbox_fusions(server):
    box = SandboxFusionSandbox(server.url + "/run_code", headers={"X-Key": "k"}, compile_timeout_s=4.0)
    box.run_sync("1", limits=Limits(wall_s=5, memory_mb=300))
    box.close()
    (request,) = server.requests
    assert request.pop("code").isascii()
    assert request == {
        "path": "/run_code",
        "key": "k",
        "language": "python",
        "compile_timeout": 4.0,
        "run_timeout": 5,
        "memory_limit_MB": 300 + 256,
        "stdin": "",
    }


OK = {
    "last expression": ("x = 3\nx + 1", "4"),
    "last expression after output": ("print('a')\n[1, 'b']", "a\n[1, 'b']"),
    "semicolon": ("1 + 1;", "[no output]"),
    "empty": ("", "[no output]"),
    "only a comment": ("# nothing", "[no output]"),
    "main guard": ("if __name__ == '__main__':\n    print('main')", "main"),
    "future import first": ("from __future__ import annotations\ndef f(x: no): ...\nf.__annotations__", "{'x': 'no'}"),
    "no future import of the script's": ("def f(x: int): ...\nf.__annotations__['x'] is int", "True"),
    "sys.exit(0)": ("import sys\nprint('a')\nsys.exit(0)", "a"),
    "exit()": ("print('a')\nexit()", "a"),
    "quotes and backslashes": ("print('''\"\\\\n\"\"\"''')", '"\\n"""'),
    "big integers": ("len(str(10**6000))", "6001"),
    "non-ascii": ("print('é 漢 😀')", "é 漢 😀"),
    "lone surrogate": (r"print('a\ud800b')", r"a\ud800b"),
    "stderr shown when alone": ("import sys\nprint('a', file=sys.stderr, end='')", "a"),
    "empty directory of its own": (
        "import os\nopen('m.py', 'w').write('x = 5')\nimport m\n(m.x, os.listdir())",
        "(5, ['m.py'])",
    ),
    "no finalisers": ("class D:\n    def __del__(self): print('gone')\nd = D()", "[no output]"),
    "threads": ("from threading import *\nt = Thread(target=print, args='a')\nt.start(); t.join()", "a"),
    "numpy": ("import numpy as np\nint(np.linalg.det(np.eye(3)))", "1"),
    "left early": ("import os\nos._exit(0)", "[no output]"),
    "seen in nothing of ours": ("import sys\n(sys.argv, sys.stdin.read(), sorted(globals()))", "(['main.py'], '', ['"),
}

ERRORS = {
    "exception": ("x = 1\n1 / 0", "ZeroDivisionError", "line 2"),
    "syntax error": ("x = 1\ndef f(:", "SyntaxError", "line 2"),
    "input": ("print('a')\ninput('? ')", "EOFError", "a\n?\nTraceback"),
    "sys.exit(text)": ("import sys\nsys.exit('no luck')", "SystemExit", "no luck"),
    "sys.exit(137)": ("import sys\nsys.exit(137)", "SystemExit", "137"),
    "chained": ("try:\n    1/0\nexcept Exception:\n    {}['a']", "KeyError", "ZeroDivisionError"),
    "message of several lines": ("raise ValueError('a\\nb: c')", "ValueError", "b: c"),
    "surrogate in the source": ("x = '\ud800'", "UnicodeEncodeError", ""),
    "inside a library": ("import json\njson.loads('{')", "JSONDecodeError", "line 2"),
    "no newline before the report": ("import sys\nsys.stderr.write('a')\nsys.exit(2)", "SystemExit", "a"),
    "left early": ("import os\nos._exit(3)", None, ""),
}


def test_ordinary_programs_in_order(box):
    results = asyncio.run(box.run_many([code for code, _ in OK.values()]))
    for name, result, (_, text) in zip(OK, results, OK.values(), strict=True):
        assert (name, result.status, result.error_type) == (name, Status.OK, None)
        assert (name, result.render()[: len(text)]) == (name, text)
        assert "_main" not in result.render()


def test_errors_show_only_the_programs_own_lines(box):
    results = asyncio.run(box.run_many([code for code, _, _ in ERRORS.values()]))
    for name, result, (_, error_type, shown) in zip(ERRORS, results, ERRORS.values(), strict=True):
        assert (name, result.status, result.error_type) == (name, Status.ERROR, error_type)
        assert shown in result.render()
        for foreign in ("snippet", "script.py", "_main", "site-packages", "/lib/python", "gtpo", "json/"):
            assert foreign not in result.render()


def test_same_text_as_the_local_sandbox(box, confined):
    for code in (
        "def f():\n    return 1 / 0\nf()",
        "print('a')\n{1: 'x'}",
        "import sys\nsys.exit('bye')",
        "x = (",
        "é",
    ):
        ours, theirs = box.run_sync(code), confined.run_sync(code)
        assert (ours.status, ours.stdout, ours.stderr, ours.error_type) == (
            theirs.status,
            theirs.stdout,
            theirs.stderr,
            theirs.error_type,
        )


def test_time_limits(box):
    code = "print('before', end='')\n"
    quick = Limits(cpu_s=0.4, wall_s=5), "while True: pass", "more than 0.4 s of processor time"
    sleep = Limits(wall_s=0.8), "import time\ntime.sleep(60)", "more than 0.8 s of running time"
    for limits, rest, note in (quick, sleep):
        result = box.run_sync(code + rest, limits=limits)
        assert (result.status, result.stdout, result.note) == (Status.TIMEOUT, "before", f"timed out: {note}")
        assert 0.5 < result.wall_s < 5


@pytest.mark.parametrize("code", ["x = bytearray(10**9)", "import numpy\nnumpy.ones(10**9)"])
def test_memory_limit(box, code):
    result = box.run_sync(code)
    assert result.status is Status.MEMORY
    assert result.error_type in ("MemoryError", "_ArrayMemoryError")
    assert "MemoryError" in result.render()


def test_memory_limit_is_the_one_given(box):
    code = "x = bytearray(200 << 20)\nlen(x)"
    assert box.run_sync(code).stdout == "209715200\n"
    assert box.run_sync(code, limits=Limits(memory_mb=128)).status is Status.MEMORY


def test_printed_memory_error_is_no_lack_of_memory(box):
    code = "import sys\nprint('MemoryError', file=sys.stderr)\n"
    assert box.run_sync(code).status is Status.OK
    assert box.run_sync(code + "1/0").status is Status.ERROR


@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 1000)",
        "import sys\nwhile True: sys.stderr.write('x')",
        "import os\nos.write(1, b'x' * 30_000)",
    ],
)
def test_output_limit(box, code):
    result = box.run_sync(code, limits=Limits(output_bytes=20_000))
    assert (result.status, result.truncated) == (Status.OUTPUT_LIMIT, True)
    assert max(len(result.stdout), len(result.stderr)) == 20_000
    assert result.note == "stopped: more than 20000 bytes of output"


def test_output_is_cut_in_bytes_between_characters(box):
    limits = Limits(output_bytes=100)
    result = box.run_sync("print('漢' * 50)", limits=limits)
    assert (result.status, result.stdout) == (Status.OUTPUT_LIMIT, "漢" * 33)
    result = box.run_sync("print('x' * 99)", limits=limits)
    assert (result.status, len(result.stdout), result.truncated) == (Status.OK, 100, False)


def test_output_of_what_the_server_keeps(box):
    """The default limit is above that: a stream of the server's 1 MiB must not pass for a whole one."""
    result = box.run_sync("print('漢' * 10**6)")
    assert (result.status, set(result.stdout), result.truncated) == (Status.OUTPUT_LIMIT, {"漢"}, True)
    result = box.run_sync("import os\nos.write(1, b'x' * 3_000_000)")
    assert (result.status, len(result.stdout)) == (Status.OUTPUT_LIMIT, (1 << 20) - 256)


def test_bytes_that_are_not_utf_8_cost_the_stream(box):
    result = box.run_sync("import os\nprint('a')\nos.write(1, b'\\xff');")
    assert result.status is Status.OK
    assert result.stdout.startswith("[DecodeError]")


@pytest.mark.parametrize(
    ("code", "name"), [("import os\nos.abort()", "SIGABRT"), ("import ctypes\nctypes.string_at(0)", "SIGSEGV")]
)
def test_crash_names_the_signal(box, code, name):
    result = box.run_sync("print('before')\n" + code)
    assert (result.status, result.error_type) == (Status.CRASHED, None)
    assert result.render() == f"before\nthe process was ended by {name}"


TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n'


@pytest.mark.parametrize(
    ("scripted", "status", "error_type", "text"),
    [
        (answer(139), "crashed", None, "SIGSEGV"),
        (answer(137), "crashed", None, "SIGKILL"),
        (answer(-6, "a"), "crashed", None, "a\nthe process was ended by SIGABRT"),
        (answer(-40), "crashed", None, "signal 40"),
        (answer(152), "timeout", None, "processor time"),
        (answer(200), "error", None, "[no output]"),
        (answer(1, stderr=TRACEBACK + "ValueError: no: no"), "error", "ValueError", "no: no"),
        (answer(1, stderr=TRACEBACK + "a.b.CustomError"), "error", "CustomError", "CustomError"),
        (answer(1, stderr="Warning: old"), "error", None, "Warning: old"),
        (answer(1, stderr=TRACEBACK + "numpy.core._ArrayMemoryError: 9"), "memory", "_ArrayMemoryError", "9"),
        (answer(1, stderr="MemoryError\n"), "memory", "MemoryError", "MemoryError"),
        (answer(1, stderr="ValueError: no", status="Error"), "error", None, "no"),
        (answer(None, None, None, status="TimeLimitExceeded"), "timeout", None, "running time"),
        (answer(0, "a\ud800b"), "ok", None, "a?b"),
        (answer(0, None, None, execution_time=None), "ok", None, "[no output]"),
    ],
)
def test_scripted_answers(server, box, scripted, status, error_type, text):
    server.spoilers = [scripted]
    result = box.run_sync("1")
    assert (result.status, result.error_type) == (status, error_type)
    assert text in result.render()


PASSING = [503, 500, 429, "hang-up", "slow", "{", "[]", '{"status": "Success"}', SANDBOX_ERROR, answer(None)]


@pytest.mark.parametrize("failure", PASSING)
def test_passing_failures_are_tried_again(server, monkeypatch, failure):
    monkeypatch.setattr(remote, "_GRACE_S", 0.2 if failure == "slow" else 30.0)
    box = SandboxFusionSandbox(server.url, compile_timeout_s=0.1, limits=Limits(wall_s=0.5))
    server.spoilers = [failure, answer(0, "2\n")]
    assert box.run_sync("1+1").stdout == "2\n"
    assert len(server.requests) == 2
    box.close()


@pytest.mark.parametrize(("retries", "failure"), [(0, 503), (2, SANDBOX_ERROR), (3, "hang-up"), (1, "broken")])
def test_a_lasting_failure_is_infra(server, retries, failure):
    box = SandboxFusionSandbox(server.url, retries=retries)
    server.spoilers = [failure] * 9
    result = box.run_sync("1")
    assert result.status is Status.TOOL_FAILURE
    assert any(word in result.note for word in ("HTTP status 503", "no room", "no answer", "unreadable"))
    assert (len(server.requests), server.pings) == (retries + 1, 1)
    box.close()


def test_a_program_that_can_not_be_run_on_servers_that_answer_is_an_error_and_no_failure_of_theirs(
    server, box, monkeypatch
):
    main, _ = remote._fusion._sources()
    monkeypatch.setattr(remote._fusion, "_sources", lambda: (main, "AAAA"))
    result = box.run_sync("1")
    assert (result.status, len(server.requests)) == (Status.ERROR, 4)
    assert "could not be run there" in result.note
    assert [endpoint.failures for endpoint in box._endpoints.all] == [0]


def test_waits_grow_and_leave_the_global_generator_alone(server, monkeypatch):
    monkeypatch.setattr(_endpoints, "BACKOFF_S", 0.1)
    box = SandboxFusionSandbox(server.url, retries=2)
    server.spoilers = [503] * 3
    state, started = random.getstate(), time.monotonic()
    assert box.run_sync("1").status is Status.TOOL_FAILURE
    assert 0.75 * 0.3 <= time.monotonic() - started < 2
    assert random.getstate() == state
    box.close()


def test_a_refusal_raises_and_is_not_tried_again(server, box):
    server.spoilers = [400, 422]
    with pytest.raises(SandboxError, match=f"{server.url}/run_code: HTTP status 400: no such thing"):
        box.run_sync("1")
    (result,) = asyncio.run(box.run_many(["1"]))
    assert (result.status, "HTTP status 422" in result.note) == (Status.TOOL_FAILURE, True)
    assert len(server.requests) == 2


def test_a_wrong_url_is_named(server):
    for url, said in ((server.url + "/api", "HTTP status 404"), (DEAD, "no SandboxFusion server answers")):
        box = SandboxFusionSandbox(url, retries=0)
        with pytest.raises(SandboxError, match=said) as error:
            box.run_sync("1")
        assert url in str(error.value)
        with pytest.raises(SandboxError, match=url):
            box.ping()
        box.close()


def test_a_server_that_answered_before_is_infra_once_gone(server, box):
    server.spoilers = [answer()]
    assert box.run_sync("1").status is Status.OK
    box._endpoints.all[0].url = DEAD
    assert box.run_sync("1").status is Status.TOOL_FAILURE


def test_ping(server, box, monkeypatch):
    assert box.ping() is None
    box.run_sync("1")
    assert server.pings == 1
    monkeypatch.setattr(remote._fusion, "fetch", lambda *_: b"<html>")
    with pytest.raises(SandboxError, match="not a SandboxFusion server"):
        box.ping()


def test_many_keeps_the_order_and_raises_for_none(box):
    codes = [f"import time\ntime.sleep({0.2 if i % 3 == 0 else 0})\n{i}" for i in range(9)]
    results = asyncio.run(box.run_many([*codes, "1/0", None]))
    assert [result.stdout for result in results[:9]] == [f"{i}\n" for i in range(9)]
    assert [result.status for result in results[9:]] == ["error", "tool_failure"]
    with pytest.raises(TypeError):
        box.run_sync(None)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_once_than_allowed(server, concurrency):
    async def main():
        async with SandboxFusionSandbox(server.url, concurrency=concurrency) as sandbox:
            return await sandbox.run_many(["import time\ntime.sleep(0.2)"] * 6)

    assert {result.status for result in asyncio.run(main())} == {Status.OK}
    assert server.most_active == concurrency


def test_event_loop_is_free_meanwhile(box):
    async def main():
        ticks = 0
        job = asyncio.create_task(box.run("import time\ntime.sleep(0.4)"))
        while not job.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(main()) > 10


def test_one_sandbox_serves_several_loops_and_threads(server, box):
    server.spoilers = [answer(0, "x")] * 18
    outputs = []

    def work():
        for _ in range(2):
            outputs.extend(result.stdout for result in asyncio.run(box.run_many(["1"] * 2)))
        outputs.extend(box.run_sync("1").stdout for _ in range(2))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == ["x"] * 18


def test_seed(box):
    code = "import random, numpy\n(random.random(), numpy.random.rand())"
    first, second, other = [*asyncio.run(box.run_many([code] * 2, seed=5)), box.run_sync(code)]
    assert first.stdout == second.stdout != other.stdout


def test_what_a_program_used(box):
    result = box.run_sync("x = bytearray(b'x') * (100 << 20)\ns = 0\nfor i in range(10**6): s += i")
    assert 0.01 < result.cpu_s < 3
    assert 100 < result.max_rss_mb < 200


def test_closed_sandbox_raises(server):
    async def main():
        async with SandboxFusionSandbox(server.url) as sandbox:
            pass
        await sandbox.aclose()
        with pytest.raises(SandboxError, match="closed"):
            await sandbox.run("1")
        with pytest.raises(SandboxError, match="closed"):
            await sandbox.run_many(["1"])

    asyncio.run(main())
    assert server.requests == []


def test_closing_ends_the_waits_between_tries(server, monkeypatch):
    monkeypatch.setattr(_endpoints, "BACKOFF_S", 60.0)
    server.spoilers = [503] * 9

    async def main():
        sandbox = SandboxFusionSandbox(server.url, concurrency=1)
        jobs = [asyncio.create_task(sandbox.run("1")) for _ in range(2)]
        while not server.requests:
            await asyncio.sleep(0.01)
        await sandbox.aclose()
        return [await job for job in jobs]

    started = time.monotonic()
    assert [result.note for result in asyncio.run(main())] == ["cancelled"] * 2
    assert time.monotonic() - started < 5
    assert len(server.requests) == 1


def test_cancelled_task_is_not_tried_again(server, monkeypatch):
    monkeypatch.setattr(_endpoints, "BACKOFF_S", 60.0)
    server.spoilers = [503] * 9
    sandbox = SandboxFusionSandbox(server.url)

    async def main():
        job = asyncio.create_task(sandbox.run("1"))
        while not server.requests:
            await asyncio.sleep(0.01)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    asyncio.run(main())
    started = time.monotonic()
    sandbox.close()
    assert time.monotonic() - started < 5
    assert len(server.requests) == 1
