"""A stub model server for `fault_soak.py`: OpenAI's completions with token ids, of which a share fails in some way.

    python tests/rollout/fault_server.py PORT SEED FAULTS LOG

Each request's fate is appended to LOG, a JSON string per line.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any

from fault_plan import byte_tokenizer, planned_of, said

KINDS = (
    "429", "500", "503", "dropped", "dropped within", "hangs", "drips", "not JSON", "NaN", "text", "too many tokens",
    "outside of the vocabulary", "two choices", "no log-probabilities",
)  # fmt: skip


class Server:
    """Answers, or fails."""

    def __init__(self, seed: int, faults: float, log: str) -> None:
        self.rng, self.faults = random.Random(seed), faults
        self.log = open(log, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.tokenizer = byte_tokenizer()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line.partition(b":")[2])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                if not await self.answer(json.loads(await reader.readexactly(length)), writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays."""
        kind = self.rng.choice(KINDS) if self.rng.random() < self.faults else "ok"
        self.log.write(json.dumps(kind) + "\n")
        await asyncio.sleep(self.rng.uniform(0, 0.02))
        if kind == "dropped":
            return False
        if kind == "hangs":
            await asyncio.sleep(5)
            return False
        status = kind if kind.isdigit() else "200"
        data = b"{oops" if kind == "not JSON" else json.dumps(self.completion(body, kind)).encode()
        headers = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(headers.encode())
        if kind == "dropped within":
            writer.write(data[: len(data) // 2])
            await writer.drain()
            return False
        if kind == "drips":
            for byte in data[:60]:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.1)
            return False
        writer.write(data)
        await writer.drain()
        return True

    def completion(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        """What the rollout of this context says next, spoilt by `kind`."""
        context = body["prompt"]
        text = self.tokenizer.decode(context)
        turn = text.count("<|im_start|>assistant") - 1
        end = self.tokenizer.eos_token_id
        ids = [*self.tokenizer.encode(said(planned_of(text), turn, context), add_special_tokens=False), end]
        logprobs: list[Any] = [-0.5] * len(ids)
        if kind == "NaN":
            logprobs[len(ids) // 2] = float("nan")
        elif kind == "text":
            logprobs[0] = "-0.5"
        elif kind == "outside of the vocabulary":
            ids[0] = 10**6
        elif kind == "too many tokens":
            ids = [ids[0]] * (body["max_tokens"] + 1)
            logprobs = [-0.5] * len(ids)
        choice = {"finish_reason": "stop", "token_ids": ids, "logprobs": {"token_logprobs": logprobs}}
        if kind == "no log-probabilities":
            del choice["logprobs"]
        return {"choices": [choice] * (1 + (kind == "two choices"))}


async def main() -> None:
    """Serve for ever."""
    port, seed, faults, log = sys.argv[1:]
    server = Server(int(seed), float(faults), log)
    async with await asyncio.start_server(server.serve, "127.0.0.1", int(port), limit=1 << 24) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
