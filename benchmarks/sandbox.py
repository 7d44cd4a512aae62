"""How fast the sandbox is compared with a fresh interpreter per program, on the same machine in the same run.

    python benchmarks/sandbox.py [--seconds 5] [--rounds 3] [--calls 500] [--wall-limit 1]
                                 [--output sandbox.json]

The peer is `python -I -c PROGRAM` as a subprocess whose stdout is captured, without limits or confinement. Two threads
call the peer, a sandbox with two workers, or two sessions. These alternate within each round, and the order is reversed
every second round. The output of every call is checked. Before timing, servers are started and files are read once.

The last measurement has no peer. It compares a batch of calls, in a sandbox with the default number of workers, with
the same batch plus endless loops (one program in twenty), under a wall-clock limit. With a limit on CPU time alone,
each loop would cost that time whatever the sandbox does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from _rows import Row, print_table

from gtpo.sandbox import ExecResult, Limits, LocalSandbox, Status

WORKERS = 2
STARTS = 5
LOOP, LOOP_EVERY = "while True: pass", 20


class WrongOutput(Exception):
    """A program ended in another way, or printed something else, than it should have."""


@dataclass(frozen=True)
class Program:
    """A program and what it prints."""

    name: str
    code: str
    stdout: str


TRIVIAL = Program("trivial", "print(sum(i*i for i in range(1000)))", "332833500\n")
SYMPY = Program("sympy", "import sympy; x=sympy.symbols('x'); print(sympy.solve(x**2-5*x+6,x))", "[2, 3]\n")


def fresh_interpreter(program: Program) -> None:
    """The peer."""
    done = subprocess.run([sys.executable, "-I", "-c", program.code], stdout=subprocess.PIPE, check=False)
    if done.returncode or done.stdout.decode() != program.stdout:
        raise WrongOutput(f"the peer, {program.name}: exit status {done.returncode}, {done.stdout!r}")


def checked(result: ExecResult, program: Program) -> None:
    if result.status is not Status.OK or result.stdout != program.stdout:
        raise WrongOutput(f"the sandbox, {program.name}: {result}")


@dataclass(frozen=True)
class Load:
    """What the workers did together."""

    calls_per_s: float
    latencies_ms: list[float]


def load(call: Callable[[int], None], seconds: float) -> Load:
    """`WORKERS` threads that each make one `call(number of the worker)` after the other for `seconds`."""
    started = time.perf_counter()

    def work(worker: int) -> list[float]:
        latencies = []
        while (begin := time.perf_counter()) - started < seconds:
            call(worker)
            latencies.append(1e3 * (time.perf_counter() - begin))
        return latencies

    with ThreadPoolExecutor(WORKERS) as threads:
        latencies = [one for worker in threads.map(work, range(WORKERS)) for one in worker]
    return Load(len(latencies) / (time.perf_counter() - started), latencies)


def throughput(seconds: float, rounds: int) -> list[Row]:
    """Calls a second of the peer, of programs in the sandbox, and of programs in sessions."""
    loads: dict[str, list[Load]] = {}
    with contextlib.ExitStack() as stack:
        sandbox, other = (LocalSandbox(max_workers=WORKERS) for _ in range(2))
        stack.callback(sandbox.close)
        stack.callback(other.close)
        sessions = [other.session() for _ in range(WORKERS)]
        calls: dict[str, Callable[[int], None]] = {
            "peer trivial": lambda _: fresh_interpreter(TRIVIAL),
            "trivial": lambda _: checked(sandbox.run_sync(TRIVIAL.code), TRIVIAL),
            "peer sympy": lambda _: fresh_interpreter(SYMPY),
            "sympy": lambda _: checked(sandbox.run_sync(SYMPY.code), SYMPY),
            "session": lambda worker: checked(sessions[worker].run_sync(SYMPY.code), SYMPY),
        }
        start_servers(sandbox)
        spread(sessions)
        for number in range(rounds):
            for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
                calls[name](0)
                loads.setdefault(name, []).append(load(calls[name], seconds))
    return [
        ratio("trivial program, calls per second / the peer's", loads["trivial"], loads["peer trivial"], 1.8),
        ratio("sympy program, calls per second / the peer's", loads["sympy"], loads["peer sympy"], 18),
        latency(loads["sympy"]),
        ratio("sympy program in a session, calls per second / the peer's", loads["session"], loads["peer sympy"], 100),
    ]


def start_servers(sandbox: LocalSandbox) -> None:
    """Has every worker start both of its servers: as many programs at once as there are workers."""
    for modules in ("time", "sympy, time"):
        for result in asyncio.run(sandbox.run_many([f"import {modules}\ntime.sleep(0.3)"] * len(sandbox._seats))):
            checked(result, Program("warm-up", "", ""))


def spread(sessions: list) -> None:
    """Begins all sessions at once, so that each gets a worker of its own."""
    with ThreadPoolExecutor(len(sessions)) as threads:
        list(threads.map(lambda session: session.run_sync("import time\ntime.sleep(0.3)"), sessions))


def ratio(what: str, ours: list[Load], peers: list[Load], target: float) -> Row:
    values = [our.calls_per_s / peer.calls_per_s for our, peer in zip(ours, peers, strict=True)]
    rates = {"calls_per_s": [our.calls_per_s for our in ours], "peer_calls_per_s": [peer.calls_per_s for peer in peers]}
    return Row(what, values, "x", f">= {target:g}", statistics.median(values) >= target, dict(rates))


def latency(loads: list[Load]) -> Row:
    """The 99th percentile of a call in each round; in the details over all rounds together."""
    worst = [percentile(one.latencies_ms, 99) for one in loads]
    together = [one for each in loads for one in each.latencies_ms]
    detail = {"p50_ms": percentile(together, 50), "p99_ms": percentile(together, 99), "calls": len(together)}
    return Row("sympy program, 99th percentile", worst, "ms", "< 25", statistics.median(worst) < 25, detail)


def percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def start() -> Row:
    """Seconds from the constructor's call to the first result."""
    values = []
    for _ in range(STARTS):
        began = time.perf_counter()
        sandbox = LocalSandbox()
        result = sandbox.run_sync("1+1")
        values.append(time.perf_counter() - began)
        sandbox.close()
        checked(result, Program("1+1", "1+1", "2\n"))
    return Row("start until the first result, worst of five", values, "s", "< 1", max(values) < 1)


def loops(name: str, programs: list[Program], limits: Limits, calls: int, rounds: int) -> Row:
    """Time of `calls` of which one in twenty loops, over that of the others alone, under the same limits."""
    kinds = [None if i % LOOP_EVERY == LOOP_EVERY // 2 else programs[i % len(programs)] for i in range(calls)]
    honest = [kind for kind in kinds if kind]
    sandbox = LocalSandbox()
    try:
        start_servers(sandbox)
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        variants: dict[str, Sequence[Program | None]] = {"without": honest, "with": kinds}
        for number in range(rounds):
            for variant in list(variants)[:: 1 if number % 2 == 0 else -1]:
                seconds[variant].append(batch(sandbox, variants[variant], limits))
        max_workers = len(sandbox._seats)
    finally:
        sandbox.close()
    values = [whole / part for whole, part in zip(seconds["with"], seconds["without"], strict=True)]
    what = (
        f"{name} programs with 5 % loops, time / time without loops; {limits.cpu_s:g} s CPU, {limits.wall_s:g} s wall"
    )
    detail = {
        "cpu_limit_s": limits.cpu_s,
        "wall_limit_s": limits.wall_s,
        "max_workers": max_workers,
        "honest_calls": len(honest),
        "loops": calls - len(honest),
        "seconds_with_loops": seconds["with"],
        "seconds_without": seconds["without"],
        "cpu_seconds_of_loops_over_cores": (calls - len(honest)) * limits.cpu_s / cores(),
    }
    return Row(what, values, "x", "<= 3", statistics.median(values) <= 3, detail)


def batch(sandbox: LocalSandbox, kinds: Sequence[Program | None], limits: Limits) -> float:
    """Seconds until all programs (None: a loop), queued at once, have ended as they should."""
    codes = [kind.code if kind else LOOP for kind in kinds]
    began = time.perf_counter()
    results = asyncio.run(sandbox.run_many(codes, limits=limits))
    seconds = time.perf_counter() - began
    for kind, result in zip(kinds, results, strict=True):
        if kind:
            checked(result, kind)
        elif result.status is not Status.TIMEOUT:
            raise WrongOutput(f"an endless loop ended with {result}")
    return seconds


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(seconds: float, rounds: int, calls: int, wall_s: float) -> list[Row]:
    rows = [*throughput(seconds, rounds), start()]
    kinds = {"sympy": [SYMPY], "half sympy, half trivial": [SYMPY, TRIVIAL], "trivial": [TRIVIAL]}
    limits = Limits(cpu_s=wall_s, wall_s=wall_s)
    rows += [loops(name, programs, limits, calls, rounds) for name, programs in kinds.items()]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds per measurement of a rate (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per measurement (default: 3)")
    parser.add_argument("--calls", type=int, default=500, help="calls in the batch with loops (default: 500)")
    parser.add_argument(
        "--wall-limit", type=float, default=1.0, help="wall-clock limit of a program, in seconds (default: 1)"
    )
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args()
    try:
        rows = measure(args.seconds, args.rounds, args.calls, args.wall_limit)
    except WrongOutput as error:
        print(f"wrong output: {error}")
        return 1
    print(f"{cores()} cores, {WORKERS} threads, Python {platform.python_version()}, {args.rounds} rounds\n")
    print_table(rows)
    if args.output:
        report = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": cores(),
            "workers": WORKERS,
            "seconds": args.seconds,
            "rounds": args.rounds,
            "rows": [asdict(row) for row in rows],
        }
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
