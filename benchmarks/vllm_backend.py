"""Compares vLLM in process with our transformers backend: the same prompts, real sampling, a real tool, in one run.

    python benchmarks/vllm_backend.py --model FOLDER --problems FILE [--rounds 3] [--rollouts 64] [--dtype bfloat16]
                                      [--output vllm.json]

Needs vLLM in addition to gtpo; on its CPU build set VLLM_CPU_KVCACHE_SPACE=2. In each round, each side runs in a
separate process that loads the model, warms up on 8 rollouts and is timed on the others; the sides alternate in going
first. Groups of 8 share a prompt. Sampling at temperature 1 differs between the two, so the measure is sampled tokens
per second, and the run fails if the sides' mean turns or tokens per rollout, over all rounds, differ by more than 15 %.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GROUP, TOLERANCE = 8, 0.15
SIDES = ("transformers", "vllm")


def side(args: argparse.Namespace) -> None:
    """One side of one round: writes its figures to a file."""
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gtpo.rollout import ChatEncoder, Prompts, PythonTool, RolloutEngine, RolloutLimits, Sampling, get_format
    from gtpo.rollout.backends import TransformersBackend, VLLMBackend
    from gtpo.sandbox import LocalSandbox
    from gtpo.tasks.problems import load_problems, sample

    problems = sample(load_problems(args.problems), args.rollouts // GROUP + 1, args.seed)
    prompts = Prompts(get_format("fenced"), args.system_prompt)
    asked = [prompts.messages(problem) for problem in problems for _ in range(GROUP)]
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    if args.side == "vllm":
        from vllm import LLM

        length = {"max_model_len": 1024, "max_num_seqs": args.rollouts, "enable_chunked_prefill": False}
        engine = LLM(
            args.model,
            dtype=args.dtype,
            enforce_eager=True,
            logprobs_mode="processed_logprobs",
            seed=args.seed,
            **length,
        )
        backend: Any = VLLMBackend(engine)
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype)
        backend = TransformersBackend(model, batch_size=args.rollouts)
    limits = RolloutLimits(max_turns=4, max_turn_tokens=112, max_completion_length=320)
    engine = RolloutEngine(ChatEncoder(tokenizer, prompts.tool_format), PythonTool(LocalSandbox()), limits)
    engine.run(asked[:GROUP], backend, sampling=Sampling(), seed=1)
    start = time.perf_counter()
    trajectories = engine.run(asked[GROUP:], backend, sampling=Sampling(), seed=args.seed).trajectories
    seconds = time.perf_counter() - start
    tokens = [sum(len(turn.token_ids) for turn in t.turns) for t in trajectories]
    figures = {"seconds": seconds, "tokens": tokens, "turns": [len(t.turns) for t in trajectories]}
    Path(args.figures).write_text(json.dumps(figures))
    os._exit(0)  # vLLM's processes take long to leave; they are ended from outside


def measure(args: argparse.Namespace, which: str, number: int) -> dict[str, Any]:
    argv = [sys.executable, __file__, "--side", which, "--seed", str(number)]
    for name in ("model", "problems", "rollouts", "dtype", "system_prompt"):
        argv += [f"--{name}", str(getattr(args, name))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "figures.json")
        process = subprocess.Popen([*argv, "--figures", str(path)], start_new_session=True)
        process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        figures: dict[str, Any] = json.loads(path.read_text())
    rate = sum(figures["tokens"]) / figures["seconds"]
    print(f"round {number}, {which}: {figures['seconds']:.1f} s, {rate:.0f} tokens/s", flush=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--problems", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--system_prompt", default="Solve the problem. Run Python in ```python blocks.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--figures", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.side:
        side(args)
    rounds: list[dict[str, Any]] = []
    for number in range(args.rounds):
        rounds.append({which: measure(args, which, number) for which in SIDES[:: 1 if number % 2 == 0 else -1]})
    rates = [{w: sum(r[w]["tokens"]) / r[w]["seconds"] for w in SIDES} for r in rounds]
    ratios = [rate["vllm"] / rate["transformers"] for rate in rates]
    print(f"sampled tokens/s, vLLM / transformers: median {statistics.median(ratios):.2f}, by round {ratios}")
    means = {
        what: {w: statistics.mean(x for r in rounds for x in r[w][what]) for w in SIDES} for what in ("turns", "tokens")
    }
    print(f"means per rollout: {means}")
    if args.output:
        args.output.write_text(
            json.dumps({"rounds": rounds, "rates": rates, "ratios": ratios, "means": means}, indent=1)
        )
    alike = all(max(m.values()) <= (1 + TOLERANCE) * min(m.values()) for m in means.values())
    return 0 if alike else 1


if __name__ == "__main__":
    sys.exit(main())
