"""Tokens per second of vLLM in process: with a seed per turn, by option, and compared with `vllm bench throughput`.

    python benchmarks/vllm_speed.py --model FOLDER [--rounds 3] [--requests 64] [--tokens 128] [--output speed.json]

Needs vLLM in addition to gtpo; on its CPU build set VLLM_CPU_KVCACHE_SPACE=2. In each round, each side runs in a
separate process that loads the model's architecture with random weights (so that no turn ends early and all sides
sample equally many tokens), warms up, and is timed. The order of the sides is reversed every second round.

- bench: the function behind `vllm bench throughput`, with the same prompts as ids and without text;
- bench, log-probabilities: the same, asking for the log-probability of each sampled token, which training needs;
- ours: `VLLMBackend`, one turn per request, with log-probabilities;
- seeded: the same with `deterministic`;
- three turns: each rollout samples three turns of --tokens / 3 tokens, with 32 tokens of observations between them;
- no prefix caching, no chunked prefill, asynchronous (scheduling): three turns with that option.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

BENCH_LOGPROBS = "bench, log-probabilities"
PROMPT_TOKENS, OBSERVATION_TOKENS, TURNS, WARM_UP = 96, 32, 3, 4
OPTIONS: dict[str, dict[str, Any]] = {
    "bench": {},
    BENCH_LOGPROBS: {"logprobs_mode": "processed_logprobs"},
    "ours": {},
    "seeded": {"enable_chunked_prefill": False},  # with it a seeded request ends vLLM 0.32's CPU engine
    "three turns": {},
    "no prefix caching": {"enable_prefix_caching": False},
    "no chunked prefill": {"enable_chunked_prefill": False},
    "asynchronous": {"async_scheduling": True},
}
COMPARED = {
    BENCH_LOGPROBS: "bench",
    "ours": BENCH_LOGPROBS,
    "seeded": "ours",
    "no prefix caching": "three turns",
    "no chunked prefill": "three turns",
    "asynchronous": "three turns",
}


def prompts_of(args: argparse.Namespace, vocabulary: int) -> list[list[int]]:
    rng = random.Random(args.seed)
    return [[rng.randrange(10, vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(args.requests)]


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    shared = {"dtype": args.dtype, "enforce_eager": True, "load_format": "dummy", "max_model_len": 1024}
    return {**shared, "max_num_seqs": args.requests, "seed": args.seed, **OPTIONS[args.side]}


def by_bench(args: argparse.Namespace, vocabulary: int) -> tuple[float, int]:
    import vllm
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.throughput import run_vllm
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.llm import LLM  # noqa: F401 (loaded while SamplingParams is still a class)

    def requests(prompts: Sequence[Sequence[int]]) -> list[SampleRequest]:
        return [SampleRequest({"prompt_token_ids": list(ids)}, len(ids), args.tokens) for ids in prompts]

    prompts = prompts_of(args, vocabulary)
    asked = {"logprobs": 0} if args.side == BENCH_LOGPROBS else {}
    with patch.object(vllm, "SamplingParams", partial(vllm.SamplingParams, **asked)):
        seconds, outputs = run_vllm(
            requests(prompts),
            1,
            EngineArgs(model=args.model, **engine_options(args)),
            False,
            disable_detokenize=True,
            warmup_requests=requests([ids[::-1] for ids in prompts[:WARM_UP]]),
        )
    return seconds, sum(len(output.outputs[0].token_ids) for output in outputs or ())


def by_backend(args: argparse.Namespace, vocabulary: int) -> tuple[float, int]:
    from vllm import LLM

    from gtpo.rollout import Sampling
    from gtpo.rollout.backends import VLLMBackend
    from gtpo.rollout.backends.base import Request

    backend = VLLMBackend(LLM(model=args.model, logprobs_mode="processed_logprobs", **engine_options(args)))
    sampling = Sampling(deterministic=args.side == "seeded")
    turns = 1 if args.side in ("ours", "seeded") else TURNS
    rng = random.Random(args.seed)

    async def rollout(session: Any, number: int, prompt: Sequence[int]) -> int:
        context, sampled = list(prompt), 0
        for turn in range(turns):
            found = await session.generate(Request(number, turn, context, args.tokens // turns))
            context += [*found.token_ids, *(rng.randrange(10, vocabulary) for _ in range(OBSERVATION_TOKENS))]
            sampled += len(found.token_ids)
        session.finish(number)
        return sampled

    async def run(prompts: Sequence[Sequence[int]]) -> int:
        async with backend.serve(len(prompts), sampling=sampling, end_ids=frozenset(), seed=args.seed) as session:
            return sum(await asyncio.gather(*(rollout(session, i, ids) for i, ids in enumerate(prompts))))

    prompts = prompts_of(args, vocabulary)
    asyncio.run(run([ids[::-1] for ids in prompts[:WARM_UP]]))
    start = time.perf_counter()
    tokens = asyncio.run(run(prompts))
    return time.perf_counter() - start, tokens


def side(args: argparse.Namespace) -> None:
    """One side of one round: writes its figures to a file."""
    from transformers import AutoConfig

    vocabulary = AutoConfig.from_pretrained(args.model).get_text_config().vocab_size
    seconds, tokens = (by_bench if args.side in ("bench", BENCH_LOGPROBS) else by_backend)(args, vocabulary)
    Path(args.figures).write_text(json.dumps({"seconds": seconds, "tokens": tokens}))
    os._exit(0)  # vLLM's processes take long to leave; they are ended from outside


def measure(args: argparse.Namespace, which: str, number: int) -> float:
    argv = [sys.executable, __file__, "--side", which, "--seed", str(number)]
    for name in ("model", "requests", "tokens", "dtype"):
        argv += [f"--{name}", str(getattr(args, name))]
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder, "figures.json"), Path(folder, "log")
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*argv, "--figures", str(path)], start_new_session=True, stdout=out, stderr=subprocess.STDOUT
            )
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if not path.exists():
            raise SystemExit(f"{which}: {log.read_text(errors='replace')[-3000:]}")
        figures = json.loads(path.read_text())
    least = args.requests * (args.tokens // TURNS * TURNS)
    if figures["tokens"] < 0.98 * least:
        raise SystemExit(f"{which}: {figures['tokens']} tokens instead of {least}")
    rate = figures["tokens"] / figures["seconds"]
    print(f"round {number}, {which}: {figures['seconds']:.1f} s, {rate:.0f} tokens/s", flush=True)
    return float(rate)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--side", choices=OPTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--figures", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.side:
        side(args)
    rates: dict[str, list[float]] = {which: [] for which in args.only}
    for number in range(args.rounds):
        for which in args.only[:: 1 if number % 2 == 0 else -1]:
            rates[which].append(measure(args, which, number))
    print("| side | tokens/s, median | min to max | compared with | ratio, median | by round |")
    print("| --- | --- | --- | --- | --- | --- |")
    for which, found in rates.items():
        peer = COMPARED.get(which, "")
        ratios = [a / b for a, b in zip(found, rates.get(peer, []), strict=False)]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        by_round = ", ".join(f"{value:.2f}" for value in ratios)
        middle = statistics.median(found)
        print(f"| {which} | {middle:.0f} | {min(found):.0f} to {max(found):.0f} | {peer} | {ratio} | {by_round} |")
    if args.output:
        args.output.write_text(json.dumps(rates, indent=1))


if __name__ == "__main__":
    main()
