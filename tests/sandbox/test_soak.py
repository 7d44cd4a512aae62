"""The sandbox over many calls and through the death of its processes: nothing is lost, nothing is left."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sandbox_support import children_of
from soak import descendants, plan, soak

from gtpo.sandbox import LocalSandbox, Status
from gtpo.sandbox._child import seccomp

pytestmark = pytest.mark.skipif(not seccomp.supported(), reason="no filter for this system")


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_plan_has_the_calls_and_the_share_that_it_promises():
    for calls in (1, 7, 400):
        jobs = plan(calls, seed=3)
        assert sum(job.hostile for job in jobs) == round(0.4 * calls)
        assert sum(len(job.steps) for job in jobs) == calls
    assert plan(400, seed=3) == jobs != plan(400, seed=4)


def test_nothing_is_lost_and_nothing_is_left():
    """In a process of its own, so that descriptors and memory are the sandbox's."""
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--calls", "400"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("400 calls (240 honest, 160 hostile)")


def test_soak_finds_what_is_wrong(monkeypatch):
    """The negative control: a sandbox that keeps a descriptor for each call, a process, and a digit of outputs."""
    monkeypatch.setattr("soak._SETTLE_S", 0.3)
    kept, processes = [], []

    class Leaky(LocalSandbox):
        async def run(self, code, **options):
            kept.append(os.open(os.devnull, os.O_RDONLY))
            result = await super().run(code, **options)
            return dataclasses.replace(result, stdout=result.stdout.replace("1", "")) if "sum" in code else result

    def make(max_workers):
        processes.append(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]))
        return Leaky(max_workers)

    try:
        problems = soak(50, max_workers=2, make=make).problems
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for fd in kept:
            os.close(fd)
    assert any(problem.startswith("trivial, ") for problem in problems)
    assert any(problem.startswith("the trainer's descriptors grew") for problem in problems)
    assert "1 processes are left beside the servers" in problems
    assert {problem.split()[2] for problem in problems if problem.startswith("after close")} == {
        "descriptors",
        "processes",
    }


TRAINER = """
import threading, time
from sandbox_support import children_of
from gtpo.sandbox import Limits, LocalSandbox
sandbox = LocalSandbox(max_workers=2)
session = sandbox.session()
session.run_sync("x = 1")
(stopped,) = children_of(session.seat.scientific.pid)
long = Limits(cpu_s=600, wall_s=600)
threading.Thread(target=sandbox.run_sync, args=("while True: pass",), kwargs={"limits": long}, daemon=True).start()
while not (looping := [pid for seat in sandbox._seats if seat.light.pid for pid in children_of(seat.light.pid)]):
    time.sleep(0.01)
code = "import sympy; x = sympy.symbols('x'); print(sympy.solve(x**2 - 5*x + 6, x))"
assert sandbox.run_sync(code).stdout == "[2, 3]\\n"
print(stopped, *looping, flush=True)
while True:
    sandbox.run_sync(code)
"""


def state(pid: int) -> tuple[str, int]:
    """State and session number of a process; "X" if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[3])


def running(pids: set[int]) -> set[int]:
    """The living among `pids`, and all living processes in sessions that one of `pids` leads."""
    everything = {int(path.name): state(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    return {pid for pid, (how, session) in everything.items() if how not in "ZX" and (pid in pids or session in pids)}


def test_killing_the_trainer_leaves_no_process_of_any_kind():
    """Not the child of a session, which is stopped, nor of a loop, nor one of the calls with sympy that come and go."""
    command = [sys.executable, "-c", TRAINER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent) as trainer:
        stopped, looping = map(int, trainer.stdout.readline().split())
        below = descendants(trainer.pid)
        assert state(stopped)[0] == "T"
        assert {stopped, looping} < running(below)
        trainer.kill()
        killed = time.monotonic()
        trainer.wait()
        while left := running(below):
            assert time.monotonic() - killed < 1, left
            time.sleep(0.01)


@pytest.mark.parametrize("sort", ["light", "scientific"])
@pytest.mark.parametrize("which", ["server", "keeper"])
def test_a_server_that_dies_once_in_a_call_is_replaced_and_the_call_made_again(box, sort, which):
    """The keeper is the process between trainer and server, which waits for the server's namespaces to end."""
    code = "import time\ntime.sleep(0.5)\nprint('done')" + ("\nimport sympy" if sort == "scientific" else "")
    assert box.run_sync(code).stdout == "done\n"
    worker = getattr(box._seats[0], sort)
    server, keeper = worker.pid, worker._process.pid
    results = []
    program = threading.Thread(target=lambda: results.append(box.run_sync(code)))
    program.start()
    wait_for(lambda: children_of(server))
    os.kill(server if which == "server" else keeper, signal.SIGKILL)
    program.join(30)
    assert [(result.status, result.stdout) for result in results] == [(Status.OK, "done\n")]
    assert worker.pid not in (None, server)
    wait_for(lambda: not running({server, keeper}), seconds=1)
