"""A soak of the sandbox: thousands of calls, four in ten of them hostile, and a look at what is left.

    python tests/sandbox/soak.py [--calls 10000] [--seed 0] [--max_workers 4] [--output soak.json]

Workers, three for each worker, each with a key of its own, take the calls through the asyncio API: single programs and
the programs of sessions. An honest one must end as ok with exactly the output that is known beforehand, a hostile one
in a way that is listed for it. Descriptors and resident memory are looked at after the first tenth of the calls, when
every server is up, and again at the end; processes, descriptors, threads and directories once more after `close`.
The exit status is 1 if anything was wrong, with a list of it.

The programs and their order follow from the seed, which worker takes which does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sandbox_support import children_of, open_files

from gtpo.sandbox import ExecResult, Limits, LocalSandbox
from gtpo.sandbox._worker import Worker

HOSTILE_SHARE = 0.4
TRAINER_GROWTH_MIB, SERVER_GROWTH_MIB = 32.0, 8.0
"""Bounds of what resident memory may grow by after the warm-up: the trainer's, and the mean of the servers'."""

_GENEROUS = Limits(cpu_s=20, wall_s=120)
_SMALL = Limits(cpu_s=5, wall_s=30, memory_mb=64)
_QUICK = Limits(cpu_s=0.3, wall_s=5)
_SHORT_WALL = Limits(cpu_s=5, wall_s=0.3)
_LITTLE_OUTPUT = Limits(cpu_s=5, wall_s=30, output_bytes=20_000)
_BRIEF = Limits(cpu_s=5, wall_s=30)
_SETTLE_S = 3.0
_SLEEP = "import time\ntime.sleep(60)"
_PR_SET_CHILD_SUBREAPER = 36
_CANCELLED, _LOST = "cancelled", "'lost'\n"


@dataclass(frozen=True)
class Step:
    """One call.

    Args:
        code: the program.
        stdout: what an honest program prints; None for a hostile one.
        ends: the statuses in which it may end.
        limits: of the call.
        cancel_s: seconds after which the call's task is cancelled, or None.
        needs_state: prints `stdout` only if no earlier call of its session lost the state, else `_LOST`.
    """

    code: str
    stdout: str | None = None
    ends: tuple[str, ...] = ("ok",)
    limits: Limits = _GENEROUS
    cancel_s: float | None = None
    needs_state: bool = False


@dataclass(frozen=True)
class Job:
    """One call, or the calls of a session."""

    kind: str
    steps: tuple[Step, ...]
    session: bool = False

    @property
    def hostile(self) -> int:
        """How many of its calls are hostile."""
        return sum(step.stdout is None for step in self.steps)

    @property
    def honest(self) -> int:
        """How many are not."""
        return len(self.steps) - self.hostile


@dataclass(frozen=True)
class Sample:
    """What the trainer and its servers hold between calls; the servers' descriptors only where root may see them."""

    descriptors: int
    servers_descriptors: int
    trainer_mib: float
    servers_mib: float
    servers: tuple[int, ...]


@dataclass
class SoakReport:
    """What a soak saw; `problems` is empty if all was well."""

    calls: int = 0
    honest: int = 0
    hostile: int = 0
    seconds: float = 0.0
    level: str = ""
    ends: dict[str, dict[str, int]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """All numbers in a line."""
        first, last = self.samples
        return (
            f"{self.calls} calls ({self.honest} honest, {self.hostile} hostile) in {self.seconds:.1f} s at the level "
            f"{self.level}: {len(self.problems)} problems; descriptors {first.descriptors} -> {last.descriptors}, "
            f"of the servers {first.servers_descriptors} -> {last.servers_descriptors}; "
            f"trainer {first.trainer_mib:.1f} -> {last.trainer_mib:.1f} MiB (bound +{TRAINER_GROWTH_MIB:g}); "
            f"{len(last.servers)} servers {first.servers_mib:.1f} -> {last.servers_mib:.1f} MiB "
            f"(bound +{SERVER_GROWTH_MIB:g} each), {len(set(last.servers) - set(first.servers))} of them replaced"
        )


_FOREVER = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
_FLOOD = "while True: print('water ' * 200)"
_DEEP_IN_C = "import sys\nsys.setrecursionlimit(1 << 30)\nclass Mirror:\n"
_DEEP_IN_C += "    def __getattr__(self, name): return getattr(self, name + '')\nMirror().face"
_THREADS = (
    "import threading as t\nfor _ in range(1000): t.Thread(target=t.Event().wait, daemon=True).start()\nprint('DONE')"
)
_SPIN = "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin).start()"
_TREE = "import os\nos.makedirs('a/b/c')\nopen('a/b/c/d', 'w').close()\nos.symlink('/', 'a/l')\nos.chmod('a/b', 0)"

_HOSTILE: dict[str, tuple[str, str, Limits]] = {
    "memory at once": ("hoard = bytearray(4 << 30)", "memory", _SMALL),
    "memory by and by": ("a = []\nwhile True: a.append(bytearray(1 << 20))", "memory", _SMALL),
    "memory of numpy": ("import numpy\nnumpy.ones((1 << 14, 1 << 14))", "memory", _SMALL),
    "endless loop": ("while True: pass", "timeout", _QUICK),
    "endless loop in C": ("max(range(10**13))", "timeout", _QUICK),
    "endless loop, no exception ends it": (_FOREVER, "timeout", _QUICK),
    "endless sleep": (_SLEEP, "timeout", _SHORT_WALL),
    "exit 0": ("import os\nos._exit(0)", "ok", _BRIEF),
    "exit 7": ("import os\nos._exit(7)", "error", _BRIEF),
    "segmentation fault": ("import ctypes\nctypes.memset(8, 1, 64)", "crashed", _BRIEF),
    "segmentation fault after sympy": ("import ctypes, sympy\nctypes.memset(8, 1, 64)", "crashed", _BRIEF),
    "abort": ("import os\nos.abort()", "crashed", _BRIEF),
    "kills itself": ("import os\nos.kill(os.getpid(), 9)", "crashed", _BRIEF),
    "kills the server": ("import os\nos.kill(os.getppid(), 9)\nprint('DONE')", "error", _BRIEF),
    "flood": (_FLOOD, "output_limit", _LITTLE_OUTPUT),
    "flood of stderr": ("import sys\nwhile True: sys.stderr.write('water ' * 200)", "output_limit", _LITTLE_OUTPUT),
    "fork": ("import os\nfor _ in range(3): os.fork()\nprint('DONE')", "error", _BRIEF),
    "subprocess": ("import subprocess\nsubprocess.run(['true'])\nprint('DONE')", "error", _BRIEF),
    "exec": ("import os, sys\nos.execv(sys.executable, ['python', '-c', 'print(\"DONE\")'])", "error", _BRIEF),
    "socket": ("import socket\nsocket.socket()\nprint('DONE')", "error", _BRIEF),
    "threads": (_THREADS, "error memory", _SMALL),
    "thread that spins": (_SPIN, "ok timeout", _QUICK),
    "recursion": ("def down(n): return down(n + 1)\ndown(0)", "error", _BRIEF),
    "recursion in C": (_DEEP_IN_C, "error memory crashed", _BRIEF),
    "fills the disk": ("for i in range(100): open(f'{i}', 'wb').write(bytes(1 << 20))\nprint('DONE')", "error", _BRIEF),
    "fills the directory": ("for i in range(10**6): open(f'{i}', 'wb').close()\nprint('DONE')", "error", _BRIEF),
    "leaves a tree": (_TREE, "ok error", _BRIEF),
    "reads outside": ("print(open('/proc/1/environ').read(), 'DONE')", "error", _BRIEF),
    "closes everything": ("import os\nos.closerange(0, 256)", "ok error crashed", _BRIEF),
}
"""Programs that do harm, by name: the code, the statuses in which it may end, and its limits."""

_TROUBLES: tuple[tuple[str, str, Limits], ...] = (
    ("while True: pass", "timeout", _QUICK),
    (_FOREVER, "timeout", _QUICK),
    (_SLEEP, "timeout", _SHORT_WALL),
    (_FLOOD, "output_limit", _LITTLE_OUTPUT),
    ("import os\nos._exit(0)", "ok", _BRIEF),
    ("import ctypes\nctypes.memset(8, 1, 64)", "crashed", _BRIEF),
    ("1/0", "error", _BRIEF),
    ("hoard = bytearray(4 << 30)", "memory", _BRIEF),
    ("for i in range(10**6): open(f'{i}', 'wb').close()", "error", _BRIEF),
    (_SLEEP, _CANCELLED, _BRIEF),
)
"""The same for one program in a session, whose state may be gone afterwards."""


def _hostile(code: str, ends: str, limits: Limits, rng: random.Random) -> Step:
    cancel_s = rng.uniform(0, 0.1) if ends == _CANCELLED else None
    return Step(code, None, tuple(ends.split()), limits, cancel_s)


def _single(rng: random.Random) -> Job:
    name = rng.choice(list(_HOSTILE))
    return Job(name, (_hostile(*_HOSTILE[name], rng),))


def _cancelled(rng: random.Random) -> Job:
    code = rng.choice((_SLEEP, "while True: pass", f"import sympy\n{_SLEEP}"))
    return Job(_CANCELLED, (_hostile(code, _CANCELLED, _BRIEF, rng),))


def _troubled_session(rng: random.Random) -> Job:
    n = rng.randrange(10**6)
    before, after = Step(f"x = {n}", ""), Step("globals().get('x', 'lost')", f"{n}\n", needs_state=True)
    return Job("troubled session", (before, _hostile(*rng.choice(_TROUBLES), rng), after), session=True)


def _trivial(rng: random.Random) -> Job:
    count = rng.randrange(2000)
    return Job("trivial", (Step(f"print(sum(i*i for i in range({count})))", f"{sum(i * i for i in range(count))}\n"),))


def _expression(rng: random.Random) -> Job:
    word, times = rng.choice(("reward", "größe", "数", "\U0001f40d")), rng.randrange(1, 9)
    return Job("expression", (Step(f"word = {word!r}\nword * {times}", f"{word * times!r}\n"),))


def _large_output(rng: random.Random) -> Job:
    text = rng.choice("abcdef") * rng.randrange(60_000, 150_000)
    return Job("large output", (Step(f"print({text[0]!r} * {len(text)})", f"{text}\n"),))


def _numpy(rng: random.Random) -> Job:
    size = rng.randrange(1, 50)
    code = f"import numpy as np\na = np.arange({size * size}).reshape({size}, {size})\nprint(int((a @ a.T).trace()))"
    return Job("numpy", (Step(code, f"{sum(i * i for i in range(size * size))}\n"),))


def _sympy_step(rng: random.Random) -> Step:
    a, b = sorted(rng.sample(range(1, 60), 2))
    return Step(f"import sympy; x=sympy.symbols('x'); print(sympy.solve(x**2-{a + b}*x+{a * b},x))", f"[{a}, {b}]\n")


def _sympy(rng: random.Random) -> Job:
    return Job("sympy", (_sympy_step(rng),))


def _session(rng: random.Random) -> Job:
    n = rng.randrange(10**6)
    steps = (Step(f"y = {n}", ""), Step("def double(): return 2 * y", ""), _sympy_step(rng))
    return Job("session", (*steps, Step("double()", f"{2 * n}\n")), session=True)


_HONEST: tuple[Callable[[random.Random], Job], ...] = (
    _trivial, _trivial, _trivial, _expression, _large_output, _numpy, _numpy, _sympy, _sympy, _session
)  # fmt: skip


_HARMFUL = (_single, _single, _single, _single, _cancelled, _troubled_session)


def plan(calls: int, seed: int) -> list[Job]:
    """Jobs of `calls` calls in all, of which the share `HOSTILE_SHARE` is hostile, in the order of their beginning."""
    rng = random.Random(seed)
    hostile = round(HOSTILE_SHARE * calls)
    honest, jobs = calls - hostile, []
    while honest + hostile:
        job = rng.choice(_HARMFUL if rng.random() < hostile / (honest + hostile) else _HONEST)(rng)
        if job.hostile <= hostile and job.honest <= honest:
            jobs.append(job)
            hostile, honest = hostile - job.hostile, honest - job.honest
    return jobs


def soak(
    calls: int, seed: int = 0, max_workers: int = 4, make: Callable[[int], LocalSandbox] = LocalSandbox
) -> SoakReport:
    """Runs `calls` calls in a new sandbox and closes it; whatever goes wrong is in the report.

    Args:
        calls: how many.
        seed: of the programs and their order.
        max_workers: of the sandbox.
        make: gives the sandbox, called with `max_workers`.
    """
    report, began = SoakReport(), time.monotonic()
    before = _holdings()
    sandbox = make(max_workers)
    report.level = sandbox.level().name
    try:
        asyncio.run(_run_all(sandbox, plan(calls, seed), max_workers, report))
        report.problems += _unexpected_processes(sandbox, before["processes"])
    finally:
        sandbox.close()
    _wait(lambda: _holdings() == before)
    for what, held in _holdings().items():
        if held != before[what]:
            report.problems.append(f"after close: {what} {sorted(held)}, before: {sorted(before[what])}")
    report.seconds = time.monotonic() - began
    return report


async def _run_all(sandbox: LocalSandbox, jobs: list[Job], max_workers: int, report: SoakReport) -> None:
    """The warm-up and the rest, each followed by a look at every server and a sample."""
    await _visit_servers(sandbox, report)
    for part in (jobs[: len(jobs) // 10], jobs[len(jobs) // 10 :]):
        waiting = iter(part)
        await asyncio.gather(*(_work(sandbox, waiting, f"worker {i}", report) for i in range(3 * max_workers)))
        await _visit_servers(sandbox, report)
        report.samples.append(_sample(sandbox))
    report.problems += _growth(*report.samples)


async def _visit_servers(sandbox: LocalSandbox, report: SoakReport) -> None:
    """Has a program on each server, at the same time so that none gets two, see whether any directory is left.

    Below the level of namespaces there are none; the servers are still started, or let finish what they were told.
    """
    expression, stdout = "0", "0\n"
    if report.level == "namespaces":
        expression, stdout = "os.listdir('/box'), os.listdir()", "(['work'], [])\n"
    for modules in ("os, time", "os, sympy, time"):
        code = f"import {modules}\ntime.sleep(0.2)\n{expression}"
        for result in await sandbox.run_many([code] * len(sandbox._seats), limits=_GENEROUS):
            if (result.status, result.stdout) != ("ok", stdout):
                report.problems.append(f"on each server, {expression}: {_told(result)}")


async def _work(sandbox: LocalSandbox, jobs: Iterator[Job], key: str, report: SoakReport) -> None:
    """Takes one job after the other."""
    for job in jobs:
        if job.session:
            async with sandbox.session() as session:
                await _steps(job, session.run, report)
        else:
            await _steps(job, lambda code, limits: sandbox.run(code, limits=limits, key=key), report)


async def _steps(job: Job, run: Callable[..., Any], report: SoakReport) -> None:
    lost: bool | None = False
    for step in job.steps:
        result = await _call(run(step.code, limits=step.limits), step.cancel_s)
        report.calls += 1
        report.hostile += step.stdout is None
        report.honest += step.stdout is not None
        end = result.status.value if result else _CANCELLED
        ends = report.ends.setdefault(job.kind, {})
        ends[end] = ends.get(end, 0) + 1
        if wrong := _wrong(step, result, lost):
            report.problems.append(f"{job.kind}, {step.code!r}: {wrong}")
        lost = None if result is None else lost or result.session_lost


async def _call(running: Coroutine[Any, Any, ExecResult], cancel_s: float | None) -> ExecResult | None:
    """The result; None if the call was cancelled."""
    if cancel_s is None:
        return await running
    task = asyncio.create_task(running)
    await asyncio.wait([task], timeout=cancel_s)
    task.cancel()
    await asyncio.wait([task])
    return None if task.cancelled() else task.result()


def _wrong(step: Step, result: ExecResult | None, lost: bool | None) -> str:
    """What was not as it should have been, "" if nothing.

    Args:
        step: what was called.
        result: what came of it, None if it was cancelled.
        lost: whether the state of the session was lost before; None if that is not known.
    """
    if (result.status.value if result else _CANCELLED) not in step.ends:
        return _told(result) if result else "it was cancelled"
    if result is None:
        return ""
    if step.stdout is None:
        return f"it got through: {_told(result)}" if "DONE" in result.stdout else ""
    good = {step.stdout}
    if step.needs_state and lost is not False:
        good = {_LOST} if lost else {step.stdout, _LOST}
    as_it_should = result.stdout in good and not (result.stderr or result.truncated or result.session_lost)
    return "" if as_it_should else _told(result)


def _told(result: ExecResult) -> str:
    parts = [result.status.value, result.error_type, result.note, result.stdout[-200:], result.stderr[-200:]]
    return " | ".join(filter(None, [*parts, "session lost" * result.session_lost])).rstrip()


def _sample(sandbox: LocalSandbox) -> Sample:
    gc.collect()
    servers = [pid for worker in _workers(sandbox) if (pid := worker.pid) is not None]
    of_servers = 0
    with contextlib.suppress(PermissionError):
        of_servers = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in servers)
    return Sample(
        len(open_files()),
        of_servers,
        _resident_mib(os.getpid()),
        sum(map(_resident_mib, servers)),
        tuple(sorted(servers)),
    )


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _growth(first: Sample, last: Sample) -> list[str]:
    """Sentences about what the later sample has too much of."""
    found = []
    if last.descriptors > first.descriptors:
        found.append(f"the trainer's descriptors grew from {first.descriptors} to {last.descriptors}")
    if last.servers_descriptors > first.servers_descriptors:
        found.append(f"the servers' descriptors grew from {first.servers_descriptors} to {last.servers_descriptors}")
    if (grown := last.trainer_mib - first.trainer_mib) > TRAINER_GROWTH_MIB:
        found.append(f"the trainer grew by {grown:.1f} MiB")
    mean = last.servers_mib / len(last.servers) - first.servers_mib / len(first.servers)
    if mean > SERVER_GROWTH_MIB:
        found.append(f"the servers grew by {mean:.1f} MiB each")
    return found


def _workers(sandbox: LocalSandbox) -> list[Worker]:
    return [worker for seat in sandbox._seats for worker in (seat.light, seat.scientific)]


def descendants(pid: int) -> set[int]:
    """All processes below `pid`, unreaped ones included."""
    found, pending = set(), [pid]
    while pending:
        children = children_of(pending.pop())
        found.update(children)
        pending += children
    return found


def _unexpected_processes(sandbox: LocalSandbox, before: set[Any]) -> list[str]:
    """Sentences about processes below the trainer that are neither servers nor what keeps a server's namespaces."""
    wanted = {pid for worker in _workers(sandbox) if worker._process for pid in (worker.pid, worker._process.pid)}
    _wait(lambda: descendants(os.getpid()) - before == wanted)
    extra = descendants(os.getpid()) - before - wanted
    return [f"{len(extra)} processes are left beside the servers"] if extra else []


def _holdings() -> dict[str, set[Any]]:
    """What the trainer has of all that a sandbox takes."""
    gc.collect()
    return {
        "processes": descendants(os.getpid()),
        "descriptors": open_files(),
        "threads": {t.name for t in threading.enumerate() if t.name.startswith("gtpo-sandbox")},
        "directories": {path.name for path in Path(tempfile.gettempdir()).glob(f"gtpo-*-{os.getpid()}-*")},
    }


def _wait(condition: Callable[[], bool]) -> None:
    """Until `condition` holds, but no longer than `_SETTLE_S`."""
    deadline = time.monotonic() + _SETTLE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the programs and their order (default: 0)")
    parser.add_argument("--max_workers", type=int, default=4, help="of the sandbox (default: 4)")
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    options = parser.parse_args()
    # What loses its parent becomes our child, so that no process can hide.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, *(ctypes.c_ulong(n) for n in (1, 0, 0, 0)))
    report = soak(options.calls, options.seed, options.max_workers)
    print(report.summary())
    for problem in report.problems:
        print(f"- {problem}")
    if options.output:
        options.output.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
