"""Rollouts per second of our loop and of TRL's own (`GRPOTrainer(tools=[...])`), on the same work in the same run.

    python benchmarks/rollouts.py [--model FOLDER] [--cases A,B,C,D] [--rounds 3] [--rollouts 64]
                                  [--dtype bfloat16] [--seed 0] [--slow-call 30] [--memory-tokens 2048]
                                  [--continuous-rounds 1] [--output rollouts.json]

A   a tool that takes 100 ms
B   a tool that takes no time
C   our loop alone: one call of one rollout takes 30 s. Measures when all other rollouts have finished, and the time of
    the batch divided by the slowest rollout's own time. That is the time at which the rollout finishes in the batch
    without the slow call, plus the duration of the call for the rollout that makes it
D   our loop alone: the memory that 64 rollouts of 2,048 tokens take, and the bytes of their keys and values (Linux)

A1, B1, ... use the model in FOLDER (such as a Llama whose tokenizer knows `<|im_start|>` and `<|im_end|>`). A2, B2, ...
use the tiny default's model, untrained, in float32. A runs both, or only A2 without a FOLDER.

The same for both: model, weights, dtype, threads, allocator, prompts (token for token, groups of 8), sampling
(temperature 1, whole vocabulary), the call and its result, and the model's output: `_rollouts_script` plans every turn,
and the logits favour the planned token after the model has computed them as usual. The completions of both sides are
compared with each other and with the plan. If mean turns or tokens differ by more than 5 %, the run ends with status 1.

Different: our loop computes the prompt of a group once, and each token of a history once. TRL is called through its
`_generate`, as its trainer does at a step, with sdpa attention, a dynamic cache (on a CPU, a static one computes
attention over its whole capacity), no gradient checkpointing, no autocast over weights that already have the dtype, all
rollouts in one batch. Its tools are plain functions; with coroutines, it would still wait for the calls of one rollout
before it starts those of the next. The second peer is TRL with the continuous batching of transformers
(`use_transformers_continuous_batching`), whose cache has the capacity that the rollouts need.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
import trl
from _rollouts_script import GROUP, Workload, real_workload, tiny_workload
from _rollouts_sides import Ours, Outcome, Peer, Tool
from _rows import Row, print_table

from gtpo._malloc import keep_freed_memory

TOLERANCE = 0.05
CASES = [letter + number for letter in "ABCD" for number in "12"]
TOOL_S = {"A": 0.1, "B": 0.0}
OURS, PEER, CONTINUOUS = "gtpo", "TRL", "TRL, continuous batching"


class OtherWork(Exception):
    """The sides did not do the same work."""


def check(workload: Workload, outcomes: dict[str, Outcome]) -> bool:
    """Whether all sides' rollouts are the same, token for token; raises if they are not even alike."""
    size = len(next(iter(outcomes.values())).turns)
    plan = workload.script.turns[:size]
    turns = {"plan": statistics.mean(map(len, plan))}
    tokens = {"plan": statistics.mean(map(sum, plan))}
    lengths, openings = {}, {}
    for name, outcome in outcomes.items():
        turns[name], tokens[name] = statistics.mean(outcome.turns), statistics.mean(outcome.sampled)
        lengths[name] = statistics.mean(map(len, outcome.completions))
        openings[name] = statistics.mean(map(len, outcome.prompts))
    named = {"turns": turns, "sampled tokens": tokens, "completion tokens": lengths, "prompt tokens": openings}
    for what, means in named.items():
        if max(means.values()) > (1 + TOLERANCE) * min(means.values()):
            raise OtherWork(f"{workload.name}: mean {what} per rollout: {means}")
    whole = [sorted(zip(outcome.prompts, outcome.completions, strict=True)) for outcome in outcomes.values()]
    return all(one == whole[0] for one in whole)


@contextmanager
def whole_model(workload: Workload, model: Any) -> Iterator[None]:
    """Raises afterwards if not every forward pass inside went through all layers and the head."""
    calls: Counter[int] = Counter()
    modules = [*model.base_model.layers, model.get_output_embeddings()]
    hooks = [module.register_forward_hook(lambda module, *_: calls.update([id(module)])) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    counts = [calls[id(module)] for module in modules]
    if set(counts) != {workload.script.passes}:
        raise OtherWork(f"{workload.name}: {workload.script.passes} passes; through each layer and the head: {counts}")


def compare(case: str, workload: Workload, rounds: int, continuous_rounds: int) -> list[Row]:
    """Our rollouts per second as multiples of each peer's."""
    tool_s = TOOL_S[case[0]]
    with tempfile.TemporaryDirectory() as folder:
        other = copy.deepcopy(workload.model) if continuous_rounds else None  # TRL patches the model that it is given
        ours, peer = Ours(workload), Peer(workload, workload.model, folder)
        sides: dict[str, Any] = {OURS: lambda prompts: ours(prompts, Tool(tool_s)), PEER: lambda p: peer(p, tool_s)}
        models = {OURS: workload.model, PEER: workload.model, CONTINUOUS: other}
        if continuous_rounds:
            packed = Peer(workload, other, folder, continuous=True)
            sides[CONTINUOUS] = lambda prompts: packed(prompts, tool_s)
        for name, side in sides.items():
            with whole_model(workload, models[name]):
                check(workload, {name: side(workload.prompts[:GROUP])})
        outcomes: dict[str, list[Outcome]] = {name: [] for name in sides}
        same = True
        for number in range(rounds):
            due = [name for name in sides if name != CONTINUOUS or number < continuous_rounds]
            for name in due[:: 1 if number % 2 == 0 else -1]:
                outcomes[name].append(sides[name](workload.prompts))
            same &= check(workload, {name: outcomes[name][-1] for name in due})
    what = f"{case}: {workload.name}, tool of {1e3 * tool_s:g} ms, rollouts per second relative to "
    return [ratio(what + name, outcomes[OURS], outcomes[name], same) for name in sides if name != OURS]


def ratio(what: str, ours: list[Outcome], peers: list[Outcome], same: bool) -> Row:
    values = [peer.seconds / our.seconds for our, peer in zip(ours, peers, strict=False)]
    detail: dict[str, object] = {"same_token_for_token": same}
    for name, side in (("", ours), ("peer_", peers)):
        one, rollouts = side[0], len(side[0].turns)
        detail |= {
            f"{name}rollouts_per_s": [rollouts / outcome.seconds for outcome in side],
            f"{name}sampled_tokens_per_s": [sum(outcome.sampled) / outcome.seconds for outcome in side],
            f"{name}turns_per_rollout": statistics.mean(one.turns),
            f"{name}sampled_tokens_per_rollout": statistics.mean(one.sampled),
            f"{name}completion_tokens_per_rollout": statistics.mean(map(len, one.completions)),
            f"{name}prompt_tokens": statistics.mean(map(len, one.prompts)),
            f"{name}forward_passes": one.passes,
            f"{name}ids_computed": one.positions,
        }
    return Row(what, values, "x", detail=detail)


def slow_call(case: str, workload: Workload, slow_s: float, rounds: int) -> list[Row]:
    """What one slow call, the first one of a rollout of four turns, costs the others and the batch."""
    ours = Ours(workload)
    slow = max(range(0, len(workload.prompts), GROUP), key=lambda rollout: len(workload.script.turns[rollout]))

    def run(seconds: float) -> tuple[Outcome, dict[int, float]]:
        tool, began = Tool(0.0, slow_rollout=slow, slow_s=seconds), time.perf_counter()
        outcome = ours(workload.prompts, tool)
        check(workload, {OURS: outcome})
        return outcome, {rollout: end - began for rollout, end in tool.ends.items()}

    ours(workload.prompts[:GROUP], Tool(0.0))  # warms up
    alone = ours([workload.prompts[slow]], Tool(0.0, slow_rollout=0, slow_s=slow_s))
    others, batches, details = [], [], []
    for number in range(rounds):
        runs = {seconds: run(seconds) for seconds in (0.0, slow_s)[:: 1 if number % 2 == 0 else -1]}
        (_, without), (batch, with_it) = runs[0.0], runs[slow_s]
        last, last_before = (max(end for i, end in ends.items() if i != slow) for ends in (with_it, without))
        own = max({**without, slow: without[slow] + slow_s}.values())
        others.append(last / last_before)
        batches.append(batch.seconds / own)
        details.append((last, last_before, batch.seconds, own))
    named = ("others_finished_s", "others_finished_without_s", "batch_s", "slowest_rollouts_own_s")
    detail: dict[str, object] = dict(zip(named, map(list, zip(*details, strict=True)), strict=True))
    detail["slow_rollout_without_any_other_s"] = alone.seconds
    what = f"{case}: {workload.name}, one call of {slow_s:g} s, "
    met = statistics.median(batches) <= 1.1
    return [
        Row(f"{what}time until the others finished, relative to no slow call", others, "x", detail=detail),
        Row(f"{what}time of the batch, relative to the slowest rollout's own time", batches, "x", "<= 1.1", met),
    ]


def memory(case: str, load: Callable[..., Workload], args: tuple[Any, ...], tokens: int) -> Row:
    """Growth of this process while rollouts of one turn of `tokens` tokens are made; for a process of its own."""
    keep_freed_memory()
    workload = load(*args)
    Ours(workload)(workload.prompts[:1], Tool(0.0))  # warms up
    ctypes.CDLL(None).malloc_trim(0)  # what that left free would be taken first
    workload.plan([[tokens]] * len(workload.prompts), seed=0)
    caches = []
    watch = workload.model.register_forward_pre_hook(
        lambda model, args, kwargs: caches.__setitem__(slice(None), [kwargs["past_key_values"]]), with_kwargs=True
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = _status("VmRSS")
    outcome = Ours(workload, turns=1, tokens=tokens)(workload.prompts, Tool(0.0))
    growth = _status("VmHWM") - before
    watch.remove()
    check(workload, {OURS: outcome})
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches[0].layers)
    config = workload.model.config
    one_token = (
        2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * workload.model.dtype.itemsize
    )
    computed = one_token * sum(len(ids) + tokens - 1 for ids in outcome.prompts)
    detail = {
        "growth_times_keys_and_values": growth / computed,
        "keys_and_values_mib": computed / 2**20,
        "cache_mib": held / 2**20,
        "bytes_per_token": one_token,
        "seconds": outcome.seconds,
    }
    what = f"{case}: {workload.name}, {len(workload.prompts)} rollouts of {tokens} tokens, growth of peak memory"
    return Row(what, [growth / 2**20], "MiB", detail=detail)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(args: argparse.Namespace) -> Iterator[Row]:
    for case in args.cases:
        load, arguments = tiny_workload, (args.rollouts, args.seed)
        if case.endswith("1"):
            load, arguments = real_workload, (args.model, getattr(torch, args.dtype), *arguments)
        if case.startswith("D"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                yield process.submit(memory, case, load, arguments, args.memory_tokens).result()
        elif case.startswith("C"):
            yield from slow_call(case, load(*arguments), args.slow_call, args.rounds)
        else:
            yield from compare(case, load(*arguments), args.rounds, min(args.rounds, args.continuous_rounds))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a model, for A1, B1, C1 and D1")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of that model (default: bfloat16)")
    parser.add_argument(
        "--cases", default="A,B,C,D", help="cases, such as A or A1, separated by commas (default: A,B,C,D)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds per measurement (default: 3)")
    parser.add_argument(
        "--continuous-rounds", type=int, default=1, help="rounds of the second peer, 0 for none (default: 1)"
    )
    parser.add_argument("--rollouts", type=int, default=64, help="rollouts per batch, a multiple of 8 (default: 64)")
    parser.add_argument(
        "--slow-call", type=float, default=30.0, help="duration of the slow call in seconds (default: 30)"
    )
    parser.add_argument("--memory-tokens", type=int, default=2048, help="tokens per rollout in D (default: 2048)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args()
    possible = [case for case in CASES if args.model or case.endswith("2")]
    chosen = {name: [case for case in possible if name in (case, case[0])] for name in args.cases.split(",")}
    args.cases = [case for cases in chosen.values() for case in cases]
    if not all(chosen.values()):
        parser.error(f"--cases {', '.join(chosen)}: at least one is unknown or needs --model")
    if args.rollouts < GROUP or args.rollouts % GROUP:
        parser.error(f"--rollouts must be a multiple of {GROUP}")
    return args


def main() -> int:
    args = arguments()
    transformers.logging.set_verbosity_error()
    keep_freed_memory()  # as training on a CPU does; the peer has the good of it too
    rows, wrong = [], None
    try:
        for row in measure(args):
            rows.append(row)
    except OtherWork as error:
        wrong = error
    versions = {module.__name__: module.__version__ for module in (torch, transformers, trl)}
    print(f"{torch.get_num_threads()} threads, {versions}, {args.rollouts} rollouts, {args.rounds} rounds\n")
    print_table(rows)
    if args.output:
        report = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": versions,
            "arguments": {**vars(args), "output": str(args.output)},
            "rows": [asdict(row) for row in rows],
        }
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if wrong:
        print(f"\nstopped: the two sides did different work: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
