"""Sessions: state where it is wanted, none where it is not, and what becomes of it when something goes wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from sandbox_support import children_of

from gtpo.errors import SandboxError
from gtpo.sandbox import Limits, LocalSandbox, Status
from gtpo.sandbox._child import seccomp

pytestmark = pytest.mark.skipif(not seccomp.supported(), reason="no confinement for this system")


@pytest.fixture
def session(box):
    opened = box.session()
    yield opened
    opened.close()


@pytest.fixture
def fresh(box):
    opened = box.session(fresh=True)
    yield opened
    opened.close()


def shown(session, *codes: str, **options) -> list[str]:
    return [session.run_sync(code, **options).stdout for code in codes]


def test_state_is_kept(session):
    assert shown(session, "x = 1", "def f(): return x + 1", "f()", "_ * 10") == ["", "", "2\n", "20\n"]
    assert shown(session, "open('a', 'w').write('b')", "open('a').read()") == ["1\n", "'b'\n"]


def test_fresh_globals(fresh):
    assert shown(fresh, "x = 1", "'x' in globals()") == ["", "False\n"]
    assert fresh.run_sync("x").error_type == "NameError"


def test_fresh_globals_are_one_process(fresh):
    first, second = shown(fresh, "import os\nos.getpid()", "import os\nos.getpid()")
    assert first == second != ""


def test_an_error_keeps_the_state(session):
    session.run_sync("x = 1")
    assert session.run_sync("1/0").error_type == "ZeroDivisionError"
    assert session.run_sync("x = 2\ndef f(:").error_type == "SyntaxError"
    assert session.run_sync("x").stdout == "1\n"


def test_sys_exit_keeps_the_state(session):
    assert session.run_sync("x = 1\nimport sys\nsys.exit(0)").status is Status.OK
    assert session.run_sync("x").stdout == "1\n"


@pytest.mark.parametrize(
    ("code", "limits"),
    [
        ("while True: pass", Limits(cpu_s=0.2)),
        ("import time\ntime.sleep(60)", Limits(wall_s=0.3)),
        ("while True: print('x' * 1000)", Limits(output_bytes=5000)),
    ],
)
def test_an_interrupt_keeps_the_state(session, code, limits):
    session.run_sync("x = 1")
    result = session.run_sync(code, limits=limits)
    assert result.status in (Status.TIMEOUT, Status.OUTPUT_LIMIT)
    assert not result.session_lost
    assert session.run_sync("x").stdout == "1\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (
            "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except KeyboardInterrupt: pass",
            Status.TIMEOUT,
        ),
        ("import os\nos._exit(0)", Status.OK),
        ("import os\nos.abort()", Status.CRASHED),
    ],
)
def test_a_lost_session_says_so_and_starts_again(session, code, status):
    session.run_sync("x = 1")
    result = session.run_sync(code, limits=Limits(cpu_s=0.2, wall_s=1))
    assert (result.status, result.session_lost) == (status, True)
    assert "what earlier code defined is lost" in result.render()
    assert session.run_sync("x").error_type == "NameError"
    assert session.run_sync("y = 3\ny").stdout == "3\n"


def test_processor_time_is_for_each_program(session):
    burn = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    statuses = {session.run_sync(burn, limits=Limits(cpu_s=0.4)).status for _ in range(4)}
    assert statuses == {Status.OK}


def test_nothing_runs_between_programs(session):
    code = "import threading, time\nn = 0\ndef count():\n    global n\n    while True: n += 1; time.sleep(0.001)\n"
    session.run_sync(code + "threading.Thread(target=count, daemon=True).start()\ntime.sleep(0.05)")
    before = int(session.run_sync("n").stdout)
    time.sleep(0.5)
    assert int(session.run_sync("n").stdout) - before < 100


def test_sessions_do_not_see_each_other(box):
    with_file, other = box.session(), box.session()
    with_file.run_sync("x = 1\nopen('secret', 'w').write('battery')")
    assert with_file.seat is not None
    look = "import os, glob\nglob.glob('/box/*/secret') + glob.glob('../*/secret') + list(globals().get('x', ''))"
    assert shown(other, look) == ["[]\n"]
    assert box.run_sync("import numpy\n" + look).stdout == "[]\n"
    with_file.close()
    other.close()


def test_closing_leaves_nothing(box):
    opened = box.session()
    opened.run_sync("open('a', 'w').write('b')")
    server = box._seats[0].scientific.pid
    assert len(children_of(server)) == 1
    opened.close()
    opened.close()
    assert box.run_sync("import numpy, os\nos.listdir('/box'), os.getcwd()").stdout == "(['work'], '/box/work')\n"
    assert children_of(server) == []


def test_a_dead_server_takes_state_with_it_and_that_is_not_hidden(session):
    session.run_sync("x = 1")
    os.kill(session.seat.scientific.pid, signal.SIGKILL)
    assert session.run_sync("x").status is Status.TOOL_FAILURE


def test_a_dead_server_does_not_matter_where_there_is_no_state(fresh):
    fresh.run_sync("1")
    os.kill(fresh.seat.scientific.pid, signal.SIGKILL)
    assert fresh.run_sync("2").stdout == "2\n"


def test_same_seed_same_numbers(box):
    code = "import random, numpy\nrandom.random(), numpy.random.rand()"
    outcomes = []
    for seed in (7, 7, 8, None, None):
        opened = box.session(seed=seed)
        outcomes.append(opened.run_sync(code).stdout)
        opened.close()
    assert outcomes[0] == outcomes[1]
    assert len(set(outcomes)) == 4
    assert box.run_sync(code, seed=7).stdout == outcomes[0]


def test_cancelling_ends_the_program_and_the_state(session):
    async def main():
        await session.run("x = 1")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(session.run("import time\ntime.sleep(60)"), 0.3)
        return await session.run("'x' in globals()")

    assert asyncio.run(main()).stdout == "False\n"


def test_many_sessions_at_once():
    async def rollout(sandbox, number):
        async with sandbox.session() as session:
            await session.run(f"x = {number}")
            for _ in range(3):
                await session.run("x += 100")
            return int((await session.run("x")).stdout)

    async def main():
        async with LocalSandbox(max_workers=2) as sandbox:
            return await asyncio.gather(*(rollout(sandbox, number) for number in range(20)))

    assert asyncio.run(main()) == [300 + number for number in range(20)]


def test_a_closed_sandbox_ends_its_sessions():
    sandbox = LocalSandbox(max_workers=1)
    session = sandbox.session()
    session.run_sync("1")
    (program,) = children_of(session.seat.scientific.pid)
    sandbox.close()
    session.close()
    deadline = time.monotonic() + 2
    while Path(f"/proc/{program}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{program}").exists()
    with pytest.raises(SandboxError, match="closed"):
        session.run_sync("1")


def test_lack_of_memory_ends_the_session_and_says_so(session):
    session.run_sync("x = 1")
    result = session.run_sync("y = bytearray(8 << 30)")
    assert (result.status, result.session_lost) == (Status.MEMORY, True)
    assert "what earlier code defined is lost" in result.render()
    assert session.run_sync("x").error_type == "NameError"


@pytest.mark.parametrize(
    "code", ["for i in range(300): open(str(i), 'w').close()", "open('a', 'wb').write(bytes(9 << 20))"]
)
def test_a_session_that_hoards_files_is_ended_and_the_others_go_on(box, code):
    if box.level().name != "namespaces":
        pytest.skip("nothing can be written here")
    hoarder, other = box.session(), box.session()
    assert shown(other, "x = 5") == [""]
    result = hoarder.run_sync(f"y = 1\n{code}")
    assert (result.status, result.session_lost) == (Status.OK, True)
    assert "more files were left than a session may keep" in result.render()
    assert hoarder.run_sync("y").error_type == "NameError"
    assert shown(other, "x") == ["5\n"]
    hoarder.close()
    other.close()


def test_files_that_fill_the_whole_file_system_harm_nobody_else(box):
    if box.level().name != "namespaces":
        pytest.skip("nothing can be written here")
    hoarder, other = box.session(), box.session()
    assert shown(other, "x = 5") == [""]
    assert hoarder.run_sync("for i in range(10**6): open(str(i), 'w').close()").error_type == "OSError"
    assert box.run_sync("open('a', 'w').write('b')").stdout == "1\n"
    assert shown(other, "open('a', 'w').write('b')", "x") == ["1\n", "5\n"]
    hoarder.close()
    other.close()


def test_limits_are_those_of_each_program(session):
    session.run_sync("x = 1")
    assert session.run_sync("len(bytearray(1000 << 20)) + x", limits=Limits(memory_mb=2000)).stdout == "1048576001\n"
    assert session.run_sync("print('a' * (20 << 20))", limits=Limits(output_bytes=64 << 20)).status is Status.OK
    assert session.run_sync("bytearray(1000 << 20)", limits=Limits(memory_mb=500)).status is Status.MEMORY


def test_first_calls_at_once_meet_in_one_process():
    async def main(box):
        session = box.session()
        results = await asyncio.gather(session.run("x = 1"), session.run("x"), session.run("x + 1"))
        await session.aclose()
        return [result.stdout for result in results]

    with_seats = LocalSandbox(max_workers=2)
    assert asyncio.run(main(with_seats)) == ["", "1\n", "2\n"]
    with_seats.close()


def test_sessions_spread_over_the_seats():
    box = LocalSandbox(max_workers=3)
    sessions = [box.session() for _ in range(6)]
    for session in sessions:
        session.run_sync("1")
    assert sorted(seat.sessions for seat in box._seats) == [2, 2, 2]
    for session in sessions[:3]:
        session.close()
    assert sorted(seat.sessions for seat in box._seats) == [1, 1, 1]
    box.close()


def test_closing_does_not_wait_for_the_programs_of_others():
    with_two = LocalSandbox(max_workers=2)
    sessions = [with_two.session() for _ in range(6)]
    for session in sessions:
        session.run_sync("1")

    async def main():
        busy = [asyncio.create_task(session.run("import time\ntime.sleep(2)")) for session in sessions[:2]]
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await asyncio.gather(*(session.aclose() for session in sessions[2:]))
        took = time.monotonic() - began
        left = [len(children_of(seat.scientific.pid)) for seat in with_two._seats]
        return took, left, [result.status for result in await asyncio.gather(*busy)]

    took, left, statuses = asyncio.run(main())
    with_two.close()
    assert took < 1.5, "the others go on for 1.7 s"
    assert left == [1, 1]
    assert statuses == [Status.OK] * 2


def test_a_session_that_ends_behind_its_program_harms_nobody_else(box):
    attacker, other = box.session(), box.session()
    assert shown(other, "x = 5") == [""]
    server = box._seats[0].scientific.pid
    for _ in range(5):
        attacker.run_sync(
            "import os, threading, time\nthreading.Thread(target=lambda: os.abort(), daemon=True).start()"
        )
    assert shown(other, "x") == ["5\n"]
    assert box._seats[0].scientific.pid == server
    attacker.close()
    other.close()


def test_closing_a_session_waits_for_its_own_program(box):
    async def main():
        session = box.session()
        await session.run("1")
        job = asyncio.create_task(session.run("import time\ntime.sleep(0.3)\n'ended'"))
        await asyncio.sleep(0.1)
        await session.aclose()
        for _ in range(5):  # the two ends are told to the loop one after the other
            await asyncio.sleep(0)
        return job.done(), (await job).stdout

    assert asyncio.run(main()) == (True, "'ended'\n")


def test_a_session_that_runs_while_it_is_stopped_is_ended_and_says_so(unconfined):
    """No confinement is there to deny SIGCONT."""
    session = unconfined.session()
    wake = "import os, sys, time\nfor _ in range(100):\n    os.kill(int(sys.argv[1]), 18)\n    time.sleep(0.02)"
    session.run_sync(
        "import os, subprocess, sys, threading\n"
        f"command = [sys.executable, '-S', '-c', {wake!r}, str(os.getpid())]\n"
        "subprocess.Popen(command, stdout=-3, stderr=-3)\n"
        "def burn():\n    while True: pass\n"
        "threading.Thread(target=burn, daemon=True).start()"
    )
    time.sleep(0.5)
    result = session.run_sync("1")
    assert (result.status, result.session_lost) == (Status.CRASHED, True)
    assert "it ran while it was stopped" in result.stderr
    assert session.run_sync("2").stdout == "2\n"
    session.close()
