"""Weak scaling of the rollout loop: 1, 2, 4 and 8 model servers, with rollouts in proportion.

    python benchmarks/scaling.py [--servers 1 2 4 8] [--repeats 3] [--output docs/results/scaling.json]

Each server is a separate process that holds a request for a fixed time, serves a fixed number of requests at once, and
answers with fixed tokens, so its own rate is known. The benchmark measures whether the loop on one client keeps the
servers busy, and, with servers that answer immediately, the maximum rate of the client itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from pathlib import Path

TURNS, PLACES, DELAY_S, ROLLOUTS = 3, 16, 0.5, 64
"""Turns a rollout; places of a server; seconds a request; rollouts a server."""


def serve(port_queue, token_ids: list[list[int]], delay_s: float) -> None:
    """A server of the completions API that answers turn by turn: the calls in the prompt are the turns so far."""

    async def main() -> None:
        places = asyncio.Semaphore(PLACES if delay_s else 10**6)
        answers = [
            json.dumps(
                {
                    "choices": [
                        {"finish_reason": "stop", "token_ids": ids, "logprobs": {"token_logprobs": [-1.0] * len(ids)}}
                    ]
                }
            )
            for ids in token_ids
        ]
        models = json.dumps({"data": [{"id": "stub", "max_model_len": 4096}]})

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    asked = (await reader.readuntil(b"\r\n\r\n")).lower()
                    answer = models
                    if asked.startswith(b"post"):
                        length = int(asked.split(b"content-length:")[1].split(b"\r\n")[0])
                        body = json.loads(await reader.readexactly(length))
                        turn = body["prompt"].count(token_ids[0][0])
                        async with places:
                            await asyncio.sleep(delay_s)
                        answer = answers[turn]
                    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(answer)}\r\n\r\n"
                    writer.write((head + answer).encode())
                    await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1024)
        port_queue.put(server.sockets[0].getsockname()[1])
        async with server:
            await server.serve_forever()

    asyncio.run(main())


def rollouts_per_second(servers: int, delay_s: float) -> float:
    """One batch on so many servers, through `BackendPool`."""
    from gtpo.lab.tiny.model import make_tokenizer
    from gtpo.rollout import ChatEncoder, RolloutEngine, get_format
    from gtpo.rollout.backends import BackendPool, OpenAIBackend
    from gtpo.sandbox import ExecResult, Status

    class Calculator:
        async def run(self, code, *, limits=None, seed=None, key=None):
            return ExecResult(Status.OK, stdout="42")

    tokenizer = make_tokenizer()
    texts = ["```python\n6*7\n```"] * (TURNS - 1) + ["\\boxed{42}"]
    ids = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=serve, args=(queue, ids, delay_s), daemon=True) for _ in range(servers)]
    for process in processes:
        process.start()
    backend = BackendPool([OpenAIBackend(f"http://127.0.0.1:{queue.get()}/v1", tokenizer) for _ in processes])
    engine = RolloutEngine(ChatEncoder(tokenizer, get_format("fenced")), Calculator())
    prompts = [[{"role": "user", "content": f"q{i}"}] for i in range(ROLLOUTS * servers)]
    start = time.perf_counter()
    trajectories = engine.run(prompts, backend).trajectories
    seconds = time.perf_counter() - start
    for process in processes:
        process.kill()
    if any(len(trajectory.turns) != TURNS for trajectory in trajectories):
        raise RuntimeError("a rollout has a different number of turns than the script")
    return len(prompts) / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output")
    args = parser.parse_args()
    rows = []
    for servers in args.servers:
        rate = statistics.median(rollouts_per_second(servers, DELAY_S) for _ in range(args.repeats))
        rows.append({"servers": servers, "rollouts_per_s": rate})
        share = rate / (rows[0]["rollouts_per_s"] / rows[0]["servers"] * servers)
        rows[-1]["share_of_linear"] = share
        print(f"{servers} servers: {rate:.1f} rollouts/s, {share:.2f} of linear", flush=True)
    limit = statistics.median(rollouts_per_second(args.servers[-1], 0.0) for _ in range(args.repeats))
    print(f"servers that answer immediately: {limit:.1f} rollouts/s of {TURNS} turns, the client's own limit")
    if args.output:
        Path(args.output).write_text(json.dumps({"weak": rows, "client_limit": limit}, indent=1) + "\n")


if __name__ == "__main__":
    main()
