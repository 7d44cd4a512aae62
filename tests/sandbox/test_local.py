"""The sandbox as an object: settings, concurrency, its own failures, and what it gives back."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from sandbox_support import children_of, open_files

from gtpo.commands import doctor
from gtpo.errors import ConfigError, SandboxError
from gtpo.sandbox import Limits, LocalSandbox, Sandbox, Status, _worker
from gtpo.sandbox._child import seccomp

pytestmark = pytest.mark.skipif(not seccomp.supported(), reason="no filter for this system")

SLEEP = "import time\nprint('started')\ntime.sleep(60)"


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def leftovers() -> tuple[set[int], set[str], set[str], int]:
    """Child processes, descriptors, temporary directories and sandbox threads of this process."""
    gc.collect()
    homes = {path.name for path in Path(tempfile.gettempdir()).glob(f"gtpo-sandbox-{os.getpid()}-*")}
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("gtpo-sandbox")]
    return set(children_of(os.getpid())), open_files(), homes, len(threads)


@pytest.fixture
def tidy():
    """Nothing that the test made is left when it ends."""
    before = leftovers()
    yield
    assert leftovers() == before


@pytest.mark.parametrize(
    "options", [{"max_workers": 0}, {"max_workers": 1.5}, {"max_workers": True}, {"require": "root"}]
)
def test_settings_out_of_range(options):
    with pytest.raises(ConfigError):
        LocalSandbox(**options)


def test_level_claims_no_more_than_holds(confined, unconfined):
    level = confined.level()
    assert (level.network_denied, level.processes_denied, level.signals_denied) == (True, True, True)
    assert level.filesystem_writes_confined
    assert level.filesystem_reads_confined
    assert level.paths_hidden == (level.name == "namespaces")
    assert level.name in ("namespaces", "landlock")
    weak = unconfined.level()
    assert (weak.name, weak.network_denied, weak.processes_denied, weak.signals_denied) == ("weak", *[False] * 3)
    assert weak.sentence.startswith("Denied: nothing.")


def test_refuses_to_start_without_a_filter(monkeypatch, tidy):
    monkeypatch.setattr(seccomp, "supported", lambda: False)
    with pytest.raises(SandboxError, match="require='weak'"):
        LocalSandbox(max_workers=1)


def test_refuses_to_start_if_nothing_holds(monkeypatch, tidy):
    """The server is asked to confine nothing; its self-test, not the platform's name, decides."""
    honest = _worker.Worker.__init__
    monkeypatch.setattr(_worker.Worker, "__init__", lambda self, launch: honest(self, _worker.Launch(False, False)))
    said = r"reaches only the level 'weak' on this machine, not 'seccomp'.*require='weak'"
    with pytest.raises(SandboxError, match=said):
        LocalSandbox(max_workers=1, require="seccomp")


def test_weak_sandbox_still_limits_and_kills_the_group(unconfined, tmp_path):
    trace = tmp_path / "pid"
    code = (
        f"import os, time\nif os.fork() == 0:\n    open({str(trace)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(120)\ntime.sleep(120)"
    )
    assert unconfined.run_sync(code, limits=Limits(wall_s=1)).status is Status.TIMEOUT
    wait_for(lambda: not Path(f"/proc/{trace.read_text()}").exists())


def test_is_a_sandbox(confined):
    assert isinstance(confined, Sandbox)


def test_many_keeps_the_order_and_raises_for_none(tidy):
    async def main():
        async with LocalSandbox(max_workers=4) as sandbox:
            codes = [f"import time\ntime.sleep({0.1 if i % 3 == 0 else 0})\n{i}" for i in range(20)]
            return await sandbox.run_many([*codes, "1/0", None, "while True: pass"], limits=Limits(cpu_s=0.3))

    results = asyncio.run(main())
    assert [result.stdout for result in results[:20]] == [f"{i}\n" for i in range(20)]
    assert [result.status for result in results[20:]] == ["error", "tool_failure", "timeout"]


def test_as_many_at_once_as_there_are_slots():
    async def main(max_workers):
        async with LocalSandbox(max_workers) as sandbox:
            await sandbox.run_many(["1"] * max_workers * 2)
            started = time.monotonic()
            await sandbox.run_many(["import time\ntime.sleep(0.4)"] * 4)
            return time.monotonic() - started

    assert asyncio.run(main(4)) < 1.2 < 1.6 < asyncio.run(main(1))


def test_event_loop_is_free_meanwhile(confined):
    async def main():
        ticks = 0
        job = asyncio.create_task(confined.run("import time\ntime.sleep(0.4)"))
        while not job.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(main()) > 10


def test_one_sandbox_serves_several_loops_and_threads(tidy):
    sandbox = LocalSandbox(max_workers=2)
    for _ in range(3):
        assert [r.stdout for r in asyncio.run(sandbox.run_many(["1", "2", "3"]))] == ["1\n", "2\n", "3\n"]
    outputs = []

    def work(i):
        outputs.extend(result.stdout for result in asyncio.run(sandbox.run_many([str(i)] * 5)))
        outputs.append(sandbox.run_sync(str(i)).stdout)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == sorted(f"{i}\n" for i in range(4) for _ in range(6))
    asyncio.run(sandbox.aclose())


def test_cancelling_kills_the_program(box):
    worker = box._seats[0].light
    server = worker.pid

    async def main():
        job = asyncio.create_task(box.run(SLEEP))
        while not children_of(server):
            await asyncio.sleep(0.01)
        (child,) = children_of(server)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        return child

    child = asyncio.run(main())
    assert not Path(f"/proc/{child}").exists()
    assert worker.pid == server


def test_cancelling_what_waits_for_a_slot(box):
    async def main():
        first = asyncio.create_task(box.run("import time\ntime.sleep(0.5)\n1"))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(box.run("open('/nowhere/ran', 'w')"))
        await asyncio.sleep(0.1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        return await first

    assert asyncio.run(main()).stdout == "1\n"


def test_time_out_of_the_callers_own(box):
    async def main():
        await asyncio.wait_for(box.run(SLEEP), 0.3)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(main())


def test_dead_server_is_replaced(box):
    worker = box._seats[0].light
    dead = worker.pid
    os.kill(dead, signal.SIGKILL)
    assert box.run_sync("1").stdout == "1\n"
    assert worker.pid != dead


def test_server_killed_while_running_means_one_retry_then_infra(box):
    worker = box._seats[0].light
    results = []
    program = threading.Thread(target=lambda: results.append(box.run_sync(SLEEP)))
    program.start()
    killed = set()
    while len(killed) < 2:
        server = worker.pid
        if server and server not in killed and (programs := children_of(server)):
            os.kill(server, signal.SIGKILL)
            killed.add(server)
            wait_for(lambda programs=programs: not any(Path(f"/proc/{pid}").exists() for pid in programs))
    program.join(10)
    assert [(result.status, result.render()) for result in results] == [("tool_failure", "[the code was not run]")]
    assert results[0].note == "the server ended"


def test_silent_server_is_given_up(box, monkeypatch):
    monkeypatch.setattr(_worker, "GRACE_S", 0.3)
    worker = box._seats[0].light
    stopped = worker.pid
    os.kill(stopped, signal.SIGSTOP)
    assert box.run_sync("1", limits=Limits(wall_s=0.2)).stdout == "1\n"
    assert not Path(f"/proc/{stopped}").exists()


def test_slow_cleaning_costs_the_server_and_not_the_result(unconfined, monkeypatch):
    monkeypatch.setattr(_worker, "CLEAN_S", 0.0001)
    unconfined.run_sync("1")
    box, worker = unconfined, unconfined._seats[0].light
    slow = worker.pid
    result = box.run_sync("for i in range(20000): open(str(i), 'w').close()\n1")
    assert (result.status, result.stdout) == (Status.OK, "1\n")
    assert worker.pid is None
    assert not Path(f"/proc/{slow}").exists()


def test_server_that_cannot_start_is_infra_not_an_exception(monkeypatch, tidy):
    sandbox = LocalSandbox(max_workers=1)
    os.kill(sandbox._seats[0].light.pid, signal.SIGKILL)
    monkeypatch.setattr(_worker, "_BOOT", "raise SystemExit('no luck')")
    result = sandbox.run_sync("1")
    assert result.status is Status.TOOL_FAILURE
    assert "no luck" in result.note
    with pytest.raises(SandboxError, match="no luck"):
        LocalSandbox(max_workers=1)
    sandbox.close()


def test_closing_ends_what_runs_and_leaves_nothing(tidy):
    async def main():
        sandbox = LocalSandbox(max_workers=2)
        jobs = [asyncio.create_task(sandbox.run(SLEEP)) for _ in range(4)]
        lights = [seat.light for seat in sandbox._seats]
        while not all(children_of(worker.pid) for worker in lights if worker.pid) or not sandbox._seats[1].light.pid:
            await asyncio.sleep(0.01)
        await asyncio.gather(sandbox.aclose(), sandbox.aclose())
        await sandbox.aclose()
        with pytest.raises(SandboxError, match="closed"):
            await sandbox.run("1")
        with pytest.raises(SandboxError, match="closed"):
            await sandbox.run_many(["1"])
        return await asyncio.gather(*jobs)

    started = time.monotonic()
    assert {result.status for result in asyncio.run(main())} == {Status.TOOL_FAILURE}
    assert time.monotonic() - started < 5


def test_nothing_is_left_after_an_exception_in_the_block(tidy):
    async def main():
        async with LocalSandbox(max_workers=2) as sandbox:
            await sandbox.run("open('a', 'w').write('b')")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(main())


def test_forgotten_sandbox_is_cleared_away(tidy):
    before = leftovers()
    sandbox = LocalSandbox(max_workers=1)
    asyncio.run(sandbox.run("1"))
    assert leftovers() != before
    del sandbox
    wait_for(lambda: leftovers() == before)


def test_many_calls_leave_no_descriptor_and_no_process(confined):
    server = confined._seats[0].light.pid
    before = len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{server}/fd"))
    asyncio.run(confined.run_many(["1/0", "1", "import os\nos.abort()"] * 30))
    assert (len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{server}/fd"))) == before
    assert children_of(server) == []


TRAINER = """
import os, sys, time, threading
from gtpo.sandbox import LocalSandbox
sandbox = LocalSandbox(max_workers=1)
threading.Thread(target=sandbox.run_sync, args=("import time\\ntime.sleep(60)",), daemon=True).start()
print(sandbox._seats[0].light.pid, flush=True)
time.sleep(60)
"""


def test_killing_the_trainer_ends_server_and_program():
    with subprocess.Popen([sys.executable, "-c", TRAINER], stdout=subprocess.PIPE, text=True) as trainer:
        server = trainer.stdout.readline().strip()
        wait_for(lambda: children_of(int(server)))
        (program,) = children_of(int(server))
        trainer.kill()
        trainer.wait()
    wait_for(lambda: not Path(f"/proc/{program}").exists(), seconds=1)
    wait_for(lambda: not Path(f"/proc/{server}").exists() or " Z " in Path(f"/proc/{server}/stat").read_text())


def test_a_forked_copy_is_refused_and_does_no_harm(box):
    pid = os.fork()
    if pid == 0:
        try:
            box.run_sync("1")
        except SandboxError:
            box.close()
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.parametrize("code", [None, b"1", 1])
def test_code_must_be_a_string(box, code):
    with pytest.raises(TypeError, match="string"):
        box.run_sync(code)


def test_default_slots_oversubscribe_the_cores(tidy):
    sandbox = LocalSandbox()
    assert len(sandbox._seats) == 8 * len(os.sched_getaffinity(0))
    assert [seat.light.pid is None for seat in sandbox._seats].count(False) == 1
    sandbox.close()


@pytest.fixture
def broken(monkeypatch):
    """Has every program of the servers that start from here on fail before it begins, where a file says so."""

    def break_down(marker: Path) -> None:
        monkeypatch.setattr(
            _worker,
            "_BOOT",
            "import sys, os; sys.path[0] = sys.argv[1]; from _child import child, start\n"
            "true, marker = child.surroundings, os.open(" + repr(str(marker)) + ", os.O_RDWR)\n"
            "def surroundings(order):\n"
            "    if os.pread(marker, 1, 0) == b'x': raise OSError('no room')\n"
            "    true(order)\n"
            "child.surroundings = surroundings; start.main()",
        )

    return break_down


def test_a_worker_whose_programs_can_not_begin_is_replaced_and_the_program_tried_again(broken, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    marker.write_text("x")
    broken(marker)
    sandbox = LocalSandbox(max_workers=1)
    monkeypatch.undo()
    worker = sandbox._seats[0].light
    before = worker.pid
    assert sandbox.run_sync("1").stdout == "1\n"
    assert worker.pid != before
    assert sandbox._seats[0].failures == 0
    sandbox.close()


def test_a_worker_that_keeps_failing_does_not_draw_the_work(monkeypatch):
    sandbox = LocalSandbox(max_workers=2)
    seats = sandbox._seats
    honest = _worker.Worker.start

    def start(worker):
        if worker is seats[0].light and worker.pid is None:
            raise SandboxError("it can't start")
        honest(worker)

    asyncio.run(sandbox.run_many(["import time\ntime.sleep(0.1)"] * 4))
    os.kill(seats[0].light.pid, signal.SIGKILL)
    monkeypatch.setattr(_worker.Worker, "start", start)
    results = asyncio.run(sandbox.run_many(["1"] * 50))
    assert [result.status for result in results].count(Status.TOOL_FAILURE) <= 3
    assert sandbox._dispatcher.rests(seats[0])
    sandbox.close()


@pytest.mark.parametrize(
    ("lacking", "note"),
    [
        ("start.Threads.__init__ = lambda self: os.close(-1)", "the threads of a program are bounded by address space"),
        (
            "proc.Proc.memory_file = lambda self, pid: None",
            "memory that sessions keep is bounded by address space alone",
        ),
    ],
)
def test_what_the_machine_lacks_is_a_note_of_the_level_and_in_the_doctors_words(monkeypatch, lacking, note):
    boot = "import sys, os; sys.path[0] = sys.argv[1]; from _child import proc, start\n"
    monkeypatch.setattr(_worker, "_BOOT", f"{boot}{lacking}; start.main()")
    sandbox = LocalSandbox(max_workers=1)
    assert any(note in said for said in sandbox.level().notes)
    assert sandbox.run_sync("1").stdout == "1\n"
    session = sandbox.session()
    assert session.run_sync("2").stdout == "2\n"
    sandbox.close()
    assert note in doctor._sandbox()[1]
