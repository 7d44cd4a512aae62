"""Rollouts of one process among several whose model is spread over them by FSDP 2; started by test_distributed.

    torchrun --nproc_per_node 2 sharded_rollouts.py FOLDER

Each process makes another number of forward passes, which would wait for each other for ever if they needed each other.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard

from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.rollout import Sampling
from gtpo.rollout.backends import Request, TransformersBackend
from gtpo.training.trl_compat import whole_weights


def main(folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    process = torch.distributed.get_rank()
    tokenizer = make_tokenizer()
    plain = make_model(tokenizer, seed=0, hidden_size=32, layers=2)
    spread = make_model(tokenizer, seed=0, hidden_size=32, layers=2)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for layer in spread.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(spread, mesh=mesh)
    found = {"local": sum(p.to_local().numel() for p in spread.parameters()), "all": plain.num_parameters()}
    with whole_weights(spread):
        found["sampled"] = sampled(spread, 3 + 5 * process)
    found["expected"] = sampled(plain, 3 + 5 * process)
    found["local_again"] = sum(p.to_local().numel() for p in spread.parameters())
    ids = torch.arange(8).unsqueeze(0)
    spread(input_ids=ids, labels=ids).loss.backward()  # all processes together, as in training
    found["gradients"] = all(p.grad is not None for p in spread.parameters())
    Path(folder, f"process_{process}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def sampled(model: torch.nn.Module, turns: int) -> list[list[int]]:
    async def go() -> list[list[int]]:
        backend = TransformersBackend(model)
        async with backend.serve(turns, sampling=Sampling(), end_ids=frozenset({0}), seed=1) as server:
            asked = (server.generate(Request(i, 0, [1, 2 + i], 4 + i)) for i in range(turns))
            return [list(generation.token_ids) for generation in await asyncio.gather(*asked)]

    return asyncio.run(go())


if __name__ == "__main__":
    main(*sys.argv[1:])
