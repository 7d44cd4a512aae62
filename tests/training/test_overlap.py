"""Rollouts of the next batch under way while the trainer updates: their order, their weights, their faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import threading
import time
from concurrent.futures import CancelledError

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import adapter_server
from peft import LoraConfig
from torch.utils.data import BatchSampler
from trl.trainer.utils import RepeatSampler

from gtpo.errors import BackendError, ConfigError
from gtpo.lab.tiny.model import make_model
from gtpo.run_directory import RunFiles
from gtpo.training.groups import Counts, Draw, Group
from gtpo.training.overlap import BatchOrder, Overlap, share_cut
from gtpo.training.progress import StepProgress
from gtpo.training.run import train
from gtpo.training.sampler import EpochOrder
from gtpo.training.trainer import GTPOTrainer


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_read_ahead_are_those_that_the_data_loader_gives(processes, shuffle):
    data = [{"prompt": i} for i in range(11)]
    epoch = 0

    def order():
        sampler = RepeatSampler(data, mini_repeat_count=2, batch_size=4, repeat_count=3, shuffle=shuffle, seed=7)
        return EpochOrder(sampler, lambda: epoch)

    size = 4 * 2 // processes
    for process in range(processes):
        ahead = BatchOrder(order(), data, batch_size=size, process=process, processes=processes)
        assert ahead.per_epoch == 2
        for epoch in range(3):
            batches = BatchSamplerShard(BatchSampler(order(), size, drop_last=False), processes, process)
            expected = [[data[i] for i in batch] for batch in list(batches)[::3]]
            assert [rows(ahead, 2 * epoch), rows(ahead, 2 * epoch + 1)] == expected
        assert rows(ahead, 1) != rows(ahead, 3) or not shuffle, "an earlier epoch can be asked for again"


def rows(ahead, number):
    return [row for draw in ahead.draws(number) for row in draw.rows]


def test_a_resumed_run_knows_the_number_of_its_next_batch():
    data = list(range(12))
    sampler = RepeatSampler(data, mini_repeat_count=1, batch_size=4, repeat_count=2, shuffle=False)
    ahead = BatchOrder(EpochOrder(sampler, lambda: 0), data, batch_size=4, process=0, processes=1)
    assert [ahead.number_at(epoch) for epoch in (0.0, 1 / 3, 2 / 3, 1.0, 1 + 1 / 3, 1.5)] == [0, 1, 2, 3, 4, 4]


class Order:
    """Batch n has the problems n * groups to (n + 1) * groups - 1."""

    def __init__(self, groups=1):
        self.groups = groups

    def draws(self, number):
        return [self.drawn(number * self.groups + i) for i in range(self.groups)]

    def drawn(self, index):
        return Draw(({"prompt": index},), index)


def overlap(depth, seconds=0.0, fail=(), min_groups=1.0, slow=()):
    """Every problem of `slow` waits for its event."""
    begun, ended, slow = [], [], {index: threading.Event() for index in slow}

    def begin(number, draws, progress, on_group, order):
        begun.append(number)
        step = ahead.weights_step

        async def one(place, draw):
            while draw.index in slow and not slow[draw.index].is_set():
                await asyncio.sleep(0.01)
            on_group(Group(place, draw, (), weights_step=step))

        async def roll_out():
            progress("rollouts", 0, 1)
            try:
                await asyncio.sleep(seconds)
            finally:
                ended.append(number)
            if number in fail:
                raise BackendError("gone")
            await asyncio.gather(*(one(place, draw) for place, draw in enumerate(draws)))
            return Counts(drawn=len(draws))

        return roll_out()

    ahead = Overlap(depth, begin, min_groups)
    ahead.weights_step, ahead.slow = 0, slow
    return ahead, begun, ended


def take(ahead, number, last=9, groups=1, progress=lambda *_: None):
    order = Order(groups)
    asked = [row for draw in order.draws(number) for row in draw.rows]
    return [group.draw.index for group in ahead.take(number, asked, order, last, progress)]


def test_the_next_batches_are_begun_with_the_weights_of_the_moment_and_none_after_the_last():
    ahead, begun, _ = overlap(depth=2)
    steps = []
    for number in range(5):
        ahead.weights_step = 10 * number
        (group,) = ahead.take(number, [{"prompt": number}], Order(), 4, lambda *_: None)
        assert group.draw.index == number
        steps.append(group.weights_step)
    ahead.close()
    assert begun == [0, 1, 2, 3, 4]
    assert steps == [0, 0, 0, 10, 20]


def test_late_groups_go_into_the_next_batch_and_early_ones_take_their_places():
    ahead, *_ = overlap(depth=1, min_groups=0.5, slow={1})
    assert sorted(take(ahead, 0, groups=4, last=3)) == [0, 2, 3, 4]
    assert ahead.owed() == {0: [1], 1: [5, 6, 7]}
    ahead.slow[1].set()
    time.sleep(0.1)
    assert take(ahead, 1, groups=4, last=3) == [1, 5, 6, 7], "the order of the problems, but for late ones"
    assert ahead.owed() == {}
    assert [take(ahead, number, groups=4, last=3) for number in (2, 3)] == [[8, 9, 10, 11], [12, 13, 14, 15]]
    ahead.close()
    assert ahead.counts().drawn == 16


def test_a_batch_waits_until_enough_of_its_own_groups_are_whole():
    ahead, *_ = overlap(depth=1, min_groups=0.75, slow={0, 1})
    releasing = threading.Timer(0.3, ahead.slow[1].set)
    releasing.start()
    start = time.monotonic()
    assert sorted(take(ahead, 0, groups=4)) == [1, 2, 3, 4]
    assert time.monotonic() - start >= 0.25
    ahead.close()


def test_the_last_batch_waits_for_all_that_is_left():
    ahead, *_ = overlap(depth=2, min_groups=0.25, slow={0, 5})
    assert take(ahead, 0, groups=2, last=2) == [1, 2]
    assert take(ahead, 1, groups=2, last=2) == [3, 4]
    threading.Timer(0.2, lambda: [event.set() for event in ahead.slow.values()]).start()
    assert take(ahead, 2, groups=2, last=2) == [0, 5]
    ahead.close()


def test_what_a_checkpoint_holds_of_late_groups_gives_each_group_once():
    ahead, *_ = overlap(depth=2, min_groups=0.25, slow={0})
    first = take(ahead, 0, groups=2, last=4)
    owed = json.loads(json.dumps(ahead.owed()))
    ahead.close()
    resumed, begun, _ = overlap(depth=2, min_groups=0.25)
    resumed.resume({int(number): indices for number, indices in owed.items()})
    assert resumed.owed() == {int(number): indices for number, indices in owed.items()}
    rest = [take(resumed, number, groups=2, last=4) for number in range(1, 5)]
    resumed.close()
    assert sorted(first + [index for batch in rest for index in batch]) == list(range(10))
    assert begun == sorted(begun)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_whatever_is_late_each_group_is_given_once(data):
    groups, depth, batches = (data.draw(st.integers(1, most)) for most in (4, 3, 5))
    slow = data.draw(st.sets(st.integers(0, groups * batches - 1)))
    freed = [data.draw(st.sets(st.sampled_from(sorted(slow)))) if slow else () for _ in range(batches)]
    ahead, *_ = overlap(depth=depth, min_groups=data.draw(st.sampled_from([0.25, 0.5, 1.0])), slow=slow)
    with contextlib.closing(ahead):
        found = []
        for number in range(batches):
            for index in freed[number]:
                ahead.slow[index].set()
            rest = threading.Timer(0.03, lambda: [event.set() for event in ahead.slow.values()])
            if number >= batches // 2:
                rest.start()  # what is waited for must come at some time
            else:
                for index in range(groups * (number + 1)):
                    ahead.slow.get(index, threading.Event()).set()
            found += take(ahead, number, groups=groups, last=batches - 1)
            assert len(found) == groups * (number + 1)
            if rest.ident:
                rest.join()
    assert sorted(found) == list(range(groups * batches))


def test_what_is_under_way_at_the_end_is_cancelled_and_cleans_up():
    ahead, begun, ended = overlap(depth=1, seconds=30)
    threads = threading.active_count()
    told = []

    def wait():
        with pytest.raises(CancelledError):
            take(ahead, 0, progress=lambda *state: told.append(state))

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not told:
        time.sleep(0.01)
    start = time.monotonic()
    ahead.close()
    waiting.join()
    assert time.monotonic() - start < 20
    assert sorted(ended) == sorted(begun) == [0, 1]
    assert told[0] == ("rollouts", 0, 1)
    assert threading.active_count() == threads


def test_what_fails_ahead_is_raised_when_the_batch_is_asked_for():
    ahead, *_ = overlap(depth=1, fail={1})
    assert take(ahead, 0) == [0]
    ahead.wait()
    with pytest.raises(BackendError, match="gone"):
        take(ahead, 1)
    ahead.close()


def test_rows_that_changed_since_they_were_read_ahead_are_refused():
    ahead, *_ = overlap(depth=1)
    take(ahead, 0)
    with pytest.raises(ConfigError, match=r"rows stay the same, or --overlap 0"):
        ahead.take(1, [{"prompt": "other"}], Order(), 9, lambda *_: None)
    ahead.close()


def test_rows_that_are_others_each_time_they_are_read_are_refused():
    class Changing(Order):
        reads = 0

        def drawn(self, index):
            self.reads += 1
            return Draw(({"prompt": (index, self.reads)},), index)

    ahead, *_ = overlap(depth=1)
    order = Changing()
    ahead.take(0, [{"prompt": (0, 1)}], order, 9, lambda *_: None)
    with pytest.raises(ConfigError, match=r"rows stay the same"):
        ahead.take(1, [{"prompt": (1, order.reads + 1)}], order, 9, lambda *_: None)
    ahead.close()


def test_time_without_work_is_counted():
    ahead, *_ = overlap(depth=1, seconds=0.05)
    take(ahead, 0, last=1)
    ahead.wait()
    ahead.idle_s()
    time.sleep(0.3)
    assert ahead.idle_s() >= 0.3
    take(ahead, 1, last=1)
    ahead.close()


def test_the_share_of_ratios_that_were_cut_counts_tokens_of_the_loss_only():
    class Args:
        vllm_importance_sampling_clip_max, vllm_importance_sampling_clip_min = 3.0, None

    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert share_cut(torch.tensor([[0.0], [1.0]]), mask, Args) == pytest.approx(2 / 3)
    assert share_cut(torch.tensor([[1.0, 3.0, 3.0], [0.5, 3.0, 3.0]]), mask, Args) == pytest.approx(1 / 3)


@pytest.fixture
def server(tiny_tokenizer, monkeypatch):
    """Stands for vLLM: knows adapters by name, and answers with one of a few turns."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rng = random.Random(1)
    turns = ("```python\n1+1\n```", "\\boxed{2}", "\\boxed{3}")

    def answer(body):
        return [*tiny_tokenizer.encode(rng.choice(turns), add_special_tokens=False), tiny_tokenizer.eos_token_id]

    server = adapter_server(answer)
    yield server
    server.stop()


@pytest.fixture
def run(server, config, tiny_tokenizer, problems):
    def go(resume=False, resume_with_changes=False, **changes):
        options = {"use_vllm": True, "vllm_mode": "server", "vllm_sync": "adapter", "max_steps": 4}
        options |= {"vllm_server_base_url": server.url.removesuffix("/v1"), "vllm_server_timeout": 5.0}
        args = config(**{**options, "vllm_importance_sampling_mode": "token_truncate", **changes})
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)
        return args, train(
            model,
            tiny_tokenizer,
            problems,
            args,
            resume=resume,
            resume_with_changes=resume_with_changes,
            peft_config=lora,
        )

    return go


def records(args):
    run = RunFiles(args.run_dir)
    return [run.rollouts(step) for step in run.steps()]


def logged(args):
    return RunFiles(args.run_dir).metrics()


@pytest.mark.parametrize("depth", [None, 0, 2])
def test_every_batch_is_trained_on_once_and_says_how_old_its_weights_are(server, run, depth):
    args, result = run(overlap=depth)
    depth = 1 if depth is None else depth
    assert args.overlap == depth
    assert result.steps == 4
    found = records(args)
    assert [{row["weights_step"] for row in rows} for rows in found] == [{max(step - depth, 0)} for step in range(4)]
    assert [log["staleness/max"] for log in logged(args)] == [min(step, depth) for step in range(4)]
    assert all(0 <= log["sampling/importance_sampling_ratio/frac_cut"] <= 1 for log in logged(args))
    problems = [sorted({row["problem_id"] for row in rows}) for rows in found]
    assert len({tuple(pair) for pair in problems}) == 4, "as without overlap, each step has problems of its own"
    names = list(dict.fromkeys(body["model"] for _, body, _ in server.bodies if "model" in body))
    assert len(names) == max(4 - depth, 1), "a batch is sampled from one adapter, the newest at its beginning"
    assert len(server.adapters) <= depth + 1, "those that no rollout needs are unloaded"


def test_without_overlap_and_with_it_the_problems_come_in_the_same_order(run):
    args, _ = run(overlap=0)
    without = [[row["problem_id"] for row in rows] for rows in records(args)]
    args, _ = run(overlap=1, overwrite=True)
    assert [[row["problem_id"] for row in rows] for rows in records(args)] == without


def test_a_resumed_run_rolls_out_again_what_was_under_way_and_nothing_twice(run):
    args, _ = run(overlap=1)
    whole = [[row["problem_id"] for row in rows] for rows in records(args)]
    saving = {"save_strategy": "steps", "save_steps": 2}
    run(overlap=1, overwrite=True, max_steps=2, **saving)
    args, result = run(overlap=1, resume=True, resume_with_changes=True, **saving)
    assert result.steps == 4
    assert [[row["problem_id"] for row in rows] for rows in records(args)] == whole
    assert [{row["weights_step"] for row in rows} for rows in records(args)] == [{0}, {0}, {2}, {2}]


def test_a_server_that_fails_in_the_overlap_masks_its_rollouts_and_the_run_goes_on(server, run):
    usual, failing = server.script, threading.Event()

    def script(body):
        if "lora_path" in body:
            (failing.set if body["lora_name"].endswith("-2") else failing.clear)()
        return (400, {"error": "out of memory"}) if failing.is_set() and "prompt" in body else usual(body)

    server.script = script
    args, result = run(overlap=1, max_failed_batches=3)
    assert result.steps == 4
    failures = [[row["failure"] for row in rows] for rows in records(args)]
    assert not any(failures[0])
    assert set(failures[2]) == {"model_server"}, "begun from the second weights"
    assert not any(failures[3])


def test_weights_that_cannot_be_sent_end_the_run_and_leave_no_thread(server, run):
    usual = server.script
    server.script = lambda body: (405, {"error": "no"}) if str(body.get("lora_path")).endswith("-3") else usual(body)
    with pytest.raises(BackendError, match=r"load_lora_adapter: HTTP status 405"):
        run(overlap=1)
    assert not [thread for thread in threading.enumerate() if thread.name == "gtpo-overlap"]


@pytest.fixture
def slow_problem(server, tiny_tokenizer):
    """The first problem that the server sees takes until the weights of step 3 have come; others may be late, too."""
    usual, slow, later = server.script, [], threading.Event()

    def script(body):
        if str(body.get("lora_path")).endswith("-3"):
            later.set()
        if "prompt" in body:
            slow.append(body["prompt"][:12]) if not slow else None
            if body["prompt"][:12] == slow[0]:
                later.wait(60)
        return usual(body)

    server.script = script
    yield later
    later.set()


def test_a_late_group_is_trained_on_with_a_later_batch_and_once(run, slow_problem):
    args, result = run(overlap=1, min_groups=0.5, max_steps=5)
    assert result.steps == 5
    found = records(args)
    assert all(len(rows) == 8 for rows in found)
    ids = [id for rows in found for id in {row["problem_id"] for row in rows}]
    assert len(ids) == len(set(ids)) == 10, "two problems a batch, none twice"
    assert max(log["staleness/max"] for log in logged(args)) >= 2, "the late group's weights are older"
    mixed = [rows for rows in found if len({row["weights_step"] for row in rows}) == 2]
    assert mixed, "in one batch with groups of newer weights"


def test_a_late_group_that_is_too_old_is_masked_and_counted(run, slow_problem):
    args, _ = run(overlap=1, min_groups=0.5, max_steps=5, max_staleness=1)
    found = records(args)
    stale = [row for rows in found for row in rows if row["failure"] == "stale"]
    assert stale, "the slow problem's, if no other"
    assert stale == [row for step, rows in enumerate(found) for row in rows if step - row["weights_step"] > 1]
    assert all(row["masked"] for row in stale)
    assert [log["failures/stale"] for log in logged(args)] == [
        sum(row["failure"] == "stale" for row in rows) / len(rows) for rows in found
    ]
    assert {turn["advantage"] for row in stale for turn in row["turns"]} == {0.0}


def test_late_groups_outlast_a_resumption(run, slow_problem, tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "checkpoint-1"

    def be_quick_from_the_first_checkpoint_on():
        while not (folder / "manifest.json").exists() and not slow_problem.wait(0.02):
            pass
        slow_problem.set()

    threading.Thread(target=be_quick_from_the_first_checkpoint_on, daemon=True).start()
    saving = {"save_strategy": "steps", "save_steps": 1, "min_groups": 0.5, "overlap": 1}
    args, _ = run(max_steps=2, **saving)
    owed = json.loads((folder / "late_groups_0.json").read_text())
    assert owed["0"], "the first problem was late"
    shutil.rmtree(folder.parent / "checkpoint-2")
    args, result = run(max_steps=5, resume=True, resume_with_changes=True, **saving)
    assert result.steps == 5
    found = records(args)
    ids = [id for rows in found for id in {row["problem_id"] for row in rows}]
    assert len(ids) == len(set(ids)) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": -1}, "overlap must be at least 0, got -1"),
        ({"overlap": 1}, "overlap 1 needs a vLLM server"),
        ({"overlap": 1, "use_vllm": True, "vllm_mode": "colocate"}, "overlap 1 needs a vLLM server"),
        (
            {"overlap": 1, "vllm_importance_sampling_correction": False},
            "use --vllm_importance_sampling_correction true",
        ),
        ({"overlap": 2, "max_staleness": 1}, r"max_staleness 1: with overlap 2 .* get 2 optimizer steps old"),
        ({"overlap": 1, "num_iterations": 2, "max_staleness": 2}, "get 3 optimizer steps old"),
        ({"min_groups": 0.0}, r"min_groups must be in \(0, 1\], got 0.0"),
        ({"overlap": 0, "min_groups": 0.5}, r"min_groups 0.5 needs --overlap"),
        ({"resample_uniform": 1}, "resample_uniform must be 0 or at least 2, got 1"),
    ],
)
def test_an_overlap_that_cannot_be_is_refused(config, options, message):
    server = {"use_vllm": True, "vllm_mode": "server", "vllm_sync": "adapter"}
    with pytest.raises(ConfigError, match=message):
        config(**({} if "needs a vLLM server" in message else server), **options)


def test_the_default_overlap_heeds_the_largest_staleness(config):
    server = {"use_vllm": True, "vllm_mode": "server", "vllm_sync": "adapter"}
    assert config().overlap == 0
    assert config(**server).overlap == 1
    assert config(**server, max_staleness=0).overlap == 0
    assert config(**server, vllm_importance_sampling_correction=False).overlap == 0


def test_a_data_set_that_is_streamed_is_not_read_ahead_and_that_is_said(config, capsys):
    args = config(use_vllm=True, vllm_mode="server", vllm_sync="adapter")
    stream = Dataset.from_list([{"prompt": "1"}]).to_iterable_dataset()
    assert GTPOTrainer._checked_stream(None, stream, args, StepProgress(enabled=False))
    assert args.overlap == 0
    assert "overlap is set to 0: a streamed train_dataset can't be read ahead" in capsys.readouterr().err
