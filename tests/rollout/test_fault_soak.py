"""The soak of the rollout loop, seconds of it, and whether it would find what it looks for."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from dataclasses import replace

import pytest
from fault_plan import byte_tokenizer, plan, planned_of, question, said
from fault_server import Server
from fault_soak import Soak

from gtpo.rollout import RolloutEngine
from gtpo.sandbox import Limits, LocalSandbox
from gtpo.sandbox._child import seccomp

pytestmark = pytest.mark.skipif(not seccomp.supported(), reason="no filter for this system")


def test_a_plan_follows_from_the_number_and_has_its_share_of_faults():
    plans = [plan(0, 1, i, 0.15, with_state=True) for i in range(300)]
    assert plans[7] == planned_of(f"<|im_start|>user\n{question(0, 1, 7, 0.15)}<|im_end|>")
    calls = [call for planned in plans for turn in planned.turns for call in turn]
    assert 0.1 < sum(call.faulty for call in calls) / len(calls) < 0.2
    assert said(plans[0], 0, [1, 2]) != said(plans[0], 0, [2, 1])
    tokenizer = byte_tokenizer()
    text = said(plans[0], 0, [1])
    assert tokenizer.decode(tokenizer.encode(text)) == text


class ServerInAThread:
    """The stub without a process of its own, whose start takes longer than the batch."""

    def __init__(self, faults, log):
        self.server, self.port = Server(0, faults, str(log)), 0
        self.log, ready = log, threading.Event()
        self.thread = threading.Thread(target=asyncio.run, args=(self.serve(ready),), daemon=True)
        self.thread.start()
        assert ready.wait(30)
        self.url = f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, ready):
        self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
        listening = await asyncio.start_server(self.server.serve, "127.0.0.1", 0, limit=1 << 24)
        self.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await self.over.wait()
        listening.close()

    def injected(self):
        return dict(Counter(json.loads(line) for line in self.log.read_text().splitlines()))

    def close(self):
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()
        self.server.log.close()


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr("fault_soak.TOOL_S", 0.3)
    monkeypatch.setattr("fault_tools.TOOL_S", 0.3)
    limits = Limits(cpu_s=0.5, wall_s=2.0, memory_mb=256, output_bytes=20_000)

    def soak(faults, **options):
        server = ServerInAThread(faults, tmp_path / "log")
        return Soak(10, 3, faults, 2, kills=False, server=server, limits=limits, **options)

    return soak


def test_a_batch_with_faults_loses_nothing(make):
    report = make(0.15).run(120, batches=1)
    assert [problem for problem in report.problems if "were lost to faults" not in problem] == []
    assert (report.rollouts, sum(report.ends.values())) == (10, 10)
    assert sum(count for kind, count in report.injected.items() if kind != "ok") > 0
    assert report.planned_faults > 0


class MixesUp(LocalSandbox):
    """Gives some programs the result of the one before."""

    last, count = None, 0

    async def run(self, code, **options):
        result = await super().run(code, **options)
        self.count += 1
        found = self.last if self.last is not None and self.count % 3 == 0 else result
        self.last = result
        return found


def test_control_a_mixed_up_result_is_found(make):
    assert any(", not (" in problem for problem in make(0.0, make=MixesUp).run(120, batches=1).problems)


def test_control_a_rollout_that_ends_twice_and_a_turn_that_is_missing_are_found(make, monkeypatch):
    soak = make(0.0)
    run = RolloutEngine.run

    def wrong(self, prompts, backend, *, on_rollout_end, **options):
        batch = run(self, prompts, backend, on_rollout_end=on_rollout_end, **options)
        on_rollout_end(3, batch.trajectories[3])
        first, *others = batch.trajectories
        return replace(batch, trajectories=(replace(first, turns=first.turns[:-1]), *reversed(others)))

    monkeypatch.setattr(RolloutEngine, "run", wrong)
    problems = soak.run(120, batches=1).problems
    assert any("11 ends of 10 rollouts" in problem for problem in problems)
    assert any("turns in the place of" in problem for problem in problems)
    assert any("another prompt" in problem for problem in problems)
