"""A soak of the rollout loop: 15 % of all requests and calls fail somehow, and no rollout is lost, twice or mixed up.

    python tests/rollout/fault_soak.py [--minutes 60] [--faults 0.15] [--rollouts 48] [--seed 0] [--output soak.json]

Batches of rollouts go through `RolloutEngine` with a sandbox pool and tools of a user's own, against a stub model
server in a process of its own (`fault_server.py`). Every rollout's turns and calls follow from its number, and every
turn of the stub holds a checksum of the context that it was given, so the finished trajectory shows whether anything is
missing, there twice, out of order or another rollout's.

Faults: of the server statuses 429, 500 and 503, connections dropped before and within the answer, answers that hang,
that drip, that are no JSON, or hold NaN, text, too many tokens, ids outside of the vocabulary or two choices, and kills
of the server itself; of the sandbox loops, floods, memory, crashes, and kills of its workers; of tools exceptions,
calls that block past their limit (sync, async), texts that are not Unicode, and failures of the tool itself.

Memory, descriptors, threads and processes are looked at after each batch. The exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fault_plan import Planned, byte_tokenizer, plan, question, said
from fault_tools import TOOL_S, Breaking, look, look_later

from gtpo.rollout import FunctionTool, PythonTool, RolloutConfig, RolloutEngine, build_engine
from gtpo.rollout.backends import OpenAIBackend
from gtpo.sandbox import Limits, LocalSandbox
from gtpo.types import StopReason, Trajectory

GROWTH_MIB, GROWTH_COUNT = 48.0, 3
"""Bounds of what may be grown by between the second and the last tenth: resident memory; descriptors and the like."""
UNPLANNED = 0.25
"""Share of the rollouts that faults may cost, in all: a killed worker costs all sessions that it has."""
_LIMITS = Limits(cpu_s=2.0, wall_s=8.0, memory_mb=256, output_bytes=20_000)
_FAILURES = (StopReason.TOOL_FAILURE, StopReason.MODEL_FAILURE)


@dataclass
class Sample:
    """What this process holds after a batch."""

    seconds: float
    mib: float
    workers_mib: float
    descriptors: int
    threads: int
    processes: int


@dataclass
class Report:
    """What a soak saw; `problems` is empty if all was well."""

    seconds: float = 0.0
    level: str = ""
    batches: int = 0
    rollouts: int = 0
    turns: int = 0
    calls: int = 0
    planned_faults: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    injected: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    lost_states: int = 0
    workers_killed: int = 0
    servers_killed: int = 0
    peak_mib: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """All numbers in a few lines."""
        lines = [
            f"{self.rollouts} rollouts in {self.batches} batches, {self.turns} turns, {self.calls} calls in "
            f"{self.seconds:.0f} s at the level {self.level}: {len(self.problems)} problems",
            f"ended by {self.ends}; states of sessions lost with their worker: {self.lost_states}",
            f"faults of the server {self.injected}, of calls {self.planned_faults}; killed: {self.workers_killed} "
            f"workers of the sandbox, {self.servers_killed} times the server",
        ]
        if len(self.samples) >= 10:
            for name in ("mib", "workers_mib", "descriptors", "threads", "processes"):
                lines.append("{}: {:g} -> {:g}".format(name, *_medians(self.samples, name)))
        return "\n".join(lines)


class ModelServer:
    """The stub in its process, which can be killed and started again on its port."""

    def __init__(self, seed: int, faults: float) -> None:
        self.seed, self.faults, self.starts = seed, faults, 0
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.log = Path(f"/tmp/gtpo-fault-soak-{os.getpid()}.jsonl")
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        script = str(Path(__file__).with_name("fault_server.py"))
        arguments = [str(self.port), str(self.seed + 1000 * self.starts), str(self.faults), str(self.log)]
        self.process = subprocess.Popen([sys.executable, script, *arguments])
        self.starts += 1

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def injected(self) -> dict[str, int]:
        """How often the server did what, over all its lives."""
        counts: Counter[str] = Counter()
        with contextlib.suppress(OSError):
            for line in self.log.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    counts[json.loads(line)] += 1
        return dict(counts)

    def close(self) -> None:
        self.kill()
        self.log.unlink(missing_ok=True)


class Soak:
    """One soak.

    Args:
        rollouts: per batch.
        seed: of all plans.
        faults: share of requests and calls that fail.
        max_workers: of the sandbox.
        kills: whether workers and the server are killed.
        make: gives the sandbox.
        server: the model's, by default one of its own in a process.
        limits: of a program.
    """

    def __init__(
        self,
        rollouts: int,
        seed: int,
        faults: float,
        max_workers: int = 4,
        kills: bool = True,
        make: Any = LocalSandbox,
        server: Any = None,
        limits: Limits = _LIMITS,
    ) -> None:
        self.rollouts, self.seed, self.faults, self.kills = rollouts, seed, faults, kills
        self.kill_every_s = (4.0, 12.0)
        self.report, self.over = Report(), threading.Event()
        self.tokenizer = byte_tokenizer()
        self.server = server or ModelServer(seed, faults)
        self.sandbox = make(max_workers, limits=limits)
        self.report.level = self.sandbox.level().name
        own = [FunctionTool(look, TOOL_S), FunctionTool(look_later, TOOL_S), Breaking()]
        config = RolloutConfig(
            tool_format="tool_call",
            max_turns=12,
            max_turn_tokens=2048,
            max_completion_length=30_000,
            max_context=32_000,
        )
        self.engines = [
            build_engine(config, self.tokenizer, tools=[PythonTool(self.sandbox, state), *own])
            for state in ("stateless", "session")
        ]
        self.backend = OpenAIBackend(
            self.server.url, self.tokenizer, model="stub", max_context=32_000, timeout_s=1.5, server_timeout_s=60.0
        )

    def run(self, seconds: float, batches: int | None = None) -> Report:
        """Batch after batch; returns what came of it."""
        began = time.monotonic()
        killer = threading.Thread(target=self._kill_now_and_then, daemon=True)
        if self.kills:
            killer.start()
        try:
            while time.monotonic() - began < seconds and self.report.batches != batches:
                self._batch(self.report.batches)
                self.report.batches += 1
                self._sample(time.monotonic() - began)
        finally:
            self.over.set()
            if self.kills:
                killer.join()
            self.report.injected = self.server.injected()
            self.server.close()
            self.sandbox.close()
        self.report.seconds = time.monotonic() - began
        self.report.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self._judge()
        return self.report

    def _batch(self, number: int) -> None:
        engine: RolloutEngine = self.engines[number % 2]
        plans = [plan(self.seed, number, i, self.faults, with_state=number % 2 == 1) for i in range(self.rollouts)]
        prompts = [
            [{"role": "user", "content": question(self.seed, number, i, self.faults)}] for i in range(self.rollouts)
        ]
        ended: list[int] = []
        batch = engine.run(
            prompts,
            self.backend,
            seed=number,
            max_concurrency=24,
            mask_failures=True,
            on_rollout_end=lambda i, trajectory: ended.append(i),
        )
        if sorted(ended) != list(range(self.rollouts)):
            self.report.problems.append(f"batch {number}: {len(ended)} ends of {self.rollouts} rollouts: {ended}")
        if len(batch.trajectories) != self.rollouts:
            self.report.problems.append(f"batch {number}: {len(batch.trajectories)} trajectories")
        for i, (trajectory, planned) in enumerate(zip(batch.trajectories, plans, strict=False)):
            for problem in self._wrong(engine, trajectory, planned, prompts[i]):
                self.report.problems.append(f"batch {number}, rollout {i}: {problem}")
                print(self.report.problems[-1], flush=True)

    def _wrong(self, engine: RolloutEngine, trajectory: Trajectory, planned: Planned, prompt: Any) -> list[str]:
        """What is not as planned in one rollout."""
        report, found = self.report, []
        report.rollouts += 1
        report.ends[trajectory.stop_reason.value] = report.ends.get(trajectory.stop_reason.value, 0) + 1
        if trajectory.stop_reason in _FAILURES:
            note = trajectory.note.rpartition("/v1/completions: ")[2][:60]
            report.notes[note] = report.notes.get(note, 0) + 1
        elif trajectory.stop_reason is not StopReason.ANSWER:
            return [f"ended by {trajectory.stop_reason.value}"]
        if list(trajectory.prompt_ids) != engine.encoder.prompt_ids(prompt):
            found.append("another prompt")
        context = list(trajectory.prompt_ids)
        turns = [turn for turn in trajectory.turns if turn.text]
        if len(turns) > len(planned.turns) + 1:
            return [*found, f"{len(turns)} turns in the place of {len(planned.turns) + 1}"]
        for j, turn in enumerate(turns):
            report.turns += 1
            if turn.text != said(planned, j, context):
                found.append(f"turn {j} is {turn.text[:200]!r}, not {said(planned, j, context)[:200]!r}")
            if turn.logprobs is None or not turn.token_exact or len(turn.logprobs) != len(turn.token_ids):
                found.append(f"turn {j} is not exact")
            context += turn.token_ids
            if turn.observation and j < len(planned.turns):
                found += [f"turn {j}: {wrong}" for wrong in self._wrong_results(turn.observation, planned.turns[j])]
                context += turn.observation.token_ids
        if trajectory.stop_reason is StopReason.ANSWER and len(turns) != len(planned.turns) + 1:
            found.append(f"{len(turns)} turns in the place of {len(planned.turns) + 1}")
        broke = len(turns) <= len(planned.turns) and any(call.breaks for call in planned.turns[len(turns) - 1])
        if trajectory.stop_reason is StopReason.ANSWER and any(call.breaks for turn in planned.turns for call in turn):
            found.append("a tool that broke is not told")
        if trajectory.stop_reason is StopReason.TOOL_FAILURE and not broke and not self.kills:
            found.append(f"a tool failed that was not to: {trajectory.note}")
        return found

    def _wrong_results(self, observation: Any, calls: Any) -> list[str]:
        found = []
        if len(observation.results) != len(calls):
            return [f"{len(observation.results)} results of {len(calls)} calls"]
        for result, status, call in zip(observation.results, observation.statuses, calls, strict=True):
            self.report.calls += 1
            self.report.planned_faults += call.faulty
            self.report.statuses[status] = self.report.statuses.get(status, 0) + 1
            lost = call.needs_state and "lost" in result
            self.report.lost_states += lost
            if status not in call.statuses or (call.text not in result and not lost):
                found.append(f"{call.code!r}: {status}, {result[-200:]!r}, not {call.statuses}, {call.text!r}")
        return found

    def _kill_now_and_then(self) -> None:
        rng = random.Random(self.seed)
        restart = time.monotonic() + 20
        while not self.over.wait(rng.uniform(*self.kill_every_s)):
            workers = [worker for seat in self.sandbox._seats for worker in (seat.light, seat.scientific)]
            pids = [worker.pid for worker in workers if worker.pid is not None and worker._process is not None]
            if pids:
                with contextlib.suppress(OSError):
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    self.report.workers_killed += 1
            if time.monotonic() > restart:
                self.server.kill()
                self.report.servers_killed += 1
                time.sleep(0.5)
                self.server.start()
                restart = time.monotonic() + rng.uniform(30, 90)

    def _sample(self, seconds: float) -> None:
        time.sleep(3 * TOOL_S)  # calls that went on after their limit have ended
        gc.collect()
        workers = [worker.pid for seat in self.sandbox._seats for worker in (seat.light, seat.scientific)]
        sample = Sample(
            round(seconds, 1),
            _resident_mib(os.getpid()),
            sum(_resident_mib(pid) for pid in workers if pid is not None),
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            _descendants(),
        )
        self.report.samples.append(sample)
        done = f"{self.report.rollouts} rollouts, {len(self.report.problems)} problems"
        print(f"{time.strftime('%H:%M:%S')} {done}, {sample}", flush=True)

    def _judge(self) -> None:
        report = self.report
        failed = sum(report.ends.get(reason.value, 0) for reason in _FAILURES)
        if failed > UNPLANNED * report.rollouts:
            report.problems.append(f"{failed} of {report.rollouts} rollouts were lost to faults: {report.notes}")
        if len(report.samples) < 10:
            return
        for name, most in (("mib", GROWTH_MIB), ("descriptors", GROWTH_COUNT), ("threads", GROWTH_COUNT)):
            before, after = _medians(report.samples, name)
            if after - before > most:
                report.problems.append(f"{name} grew from {before:g} to {after:g}")


def _medians(samples: list[Sample], name: str) -> tuple[float, float]:
    """Of the second and of the last tenth."""
    tenth = len(samples) // 10
    values = [float(getattr(sample, name)) for sample in samples]
    return statistics.median(values[tenth : 2 * tenth]), statistics.median(values[-tenth:])


def _resident_mib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _descendants() -> int:
    count, pending = 0, [os.getpid()]
    while pending:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{(pid := pending.pop())}/task"):
                with contextlib.suppress(OSError):
                    found = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
                    count += len(found)
                    pending += map(int, found)
    return count


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--rollouts", type=int, default=48, help="per batch (default: 48)")
    parser.add_argument(
        "--faults", type=float, default=0.15, help="share of requests and calls that fail (default: 0.15)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the plans (default: 0)")
    parser.add_argument("--max_workers", type=int, default=4, help="of the sandbox (default: 4)")
    parser.add_argument("--output", type=Path, help="write the report to this JSON file")
    options = parser.parse_args()
    report = Soak(options.rollouts, options.seed, options.faults, options.max_workers).run(60 * options.minutes)
    print(report.summary())
    for problem in report.problems[:50]:
        print(f"- {problem}")
    if options.output:
        options.output.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
