"""Seconds per step with rollouts made before each update (--overlap 0) and during it (--overlap 1), in one run.

    python benchmarks/overlap.py RUN_DIR [--steps 8] [--hidden_size 384]

The model server is a stub in a separate process: it answers each turn after a latency drawn from a heavy-tailed
distribution, and the turns call a tool that takes 0.1 to 5 s. The trainer is real, with a LoRA adapter on a small
model. Choose its --hidden_size so that rollouts and update take about equally long (both are printed). The first two
steps of each side are excluded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import fmean
from typing import Any

from peft import LoraConfig

from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.rollout import FunctionTool, build_engine
from gtpo.run_directory import read_metrics
from gtpo.tasks.problems import Problem
from gtpo.training.config import GTPOConfig
from gtpo.training.run import train

LONGEST_TURN_S, SHORTEST_TOOL_S, LONGEST_TOOL_S = 6.0, 0.1, 5.0
WARM_UP = 2


def serve(port: Any, call: Sequence[int], answers: Sequence[Sequence[int]]) -> None:
    """Stands for vLLM. A rollout makes one to three calls and answers."""

    adapters: dict[str, None] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer({"data": [{"id": name, "max_model_len": 512} for name in ("base", *adapters)]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "prompt" not in body:
                adapters[body["lora_name"]] = None
                return self._answer({})
            rng = random.Random(body["seed"])
            time.sleep(min(rng.lognormvariate(-1.4, 1.0), LONGEST_TURN_S))
            ids = list(call if rng.random() < 0.6 else rng.choice(answers))[: body["max_tokens"]]
            logprobs = {"token_logprobs": [-1.0] * len(ids)}
            self._answer({"choices": [{"finish_reason": "stop", "token_ids": ids, "logprobs": logprobs}]})

        def _answer(self, document: dict[str, Any]) -> None:
            data = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 1024

    server = Server(("127.0.0.1", 0), Handler)
    port.value = server.server_address[1]
    server.serve_forever()


def lookup(query: str) -> str:
    """Look something up, slowly.

    Args:
        query: What to look up.
    """
    time.sleep(min(SHORTEST_TOOL_S * random.Random(query + str(time.time_ns())).paretovariate(1.0), LONGEST_TOOL_S))
    return "2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--hidden_size", type=int, default=384)
    args = parser.parse_args()
    tokenizer = make_tokenizer(["```lookup\n"])
    encoded = [
        [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        for text in ("```lookup\nsomething that takes its time\n```", "\\boxed{2}", "\\boxed{3}")
    ]
    port = multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(port, encoded[0], encoded[1:]), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.01)
    found = {overlap: side(args, tokenizer, port.value, overlap) for overlap in (0, 1)}
    server.kill()
    for overlap, lines in found.items():
        mean = {name: fmean(line[name] for line in lines) for name in ("time/rollout_s", "time/update_s", "step_time")}
        step_s, idle = mean["step_time"], mean["time/rollout_s"] / mean["step_time"]
        print(
            f"overlap {overlap}: {step_s:.2f} s per step, of which {mean['time/rollout_s']:.2f} s waiting for rollouts "
            f"({idle:.0%}), update {mean['time/update_s']:.2f} s, staleness {lines[-1]['staleness/mean']:.0f}"
        )
    without, with_overlap = (fmean(line["step_time"] for line in lines) for lines in found.values())
    print(f"ratio: {without / with_overlap:.2f}")


def side(args: argparse.Namespace, tokenizer: Any, port: int, overlap: int) -> list[dict[str, float]]:
    """The metrics of the steps of one side, without those that warm up."""
    config = GTPOConfig(
        run_dir=str(args.run_dir / str(overlap)),
        overwrite=True,
        overlap=overlap,
        use_vllm=True,
        vllm_mode="server",
        vllm_sync="adapter",
        vllm_server_base_url=f"http://127.0.0.1:{port}",
        vllm_importance_sampling_mode="token_truncate",
        deterministic=True,
        tool_format="fenced",
        system_prompt="",
        max_turns=4,
        max_turn_tokens=64,
        max_completion_length=400,
        num_generations=8,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=8,
        max_steps=args.steps + WARM_UP,
        learning_rate=1e-4,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        record_every=0,
        seed=1,
    )
    engine = build_engine(config, tokenizer, tools=[FunctionTool(lookup)])
    problems = [Problem(id=f"p/{i}", question=f"{i}+{2 - i}", answer="2") for i in range(256)]
    model = make_model(tokenizer, seed=0, hidden_size=args.hidden_size, layers=4)
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    train(model, tokenizer, problems, config, engine=engine, peft_config=lora, label=f"overlap {overlap}")
    return [line for line in read_metrics(config.run_dir) if "step_time" in line][WARM_UP:]


if __name__ == "__main__":
    main()
