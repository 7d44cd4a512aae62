"""Compares the memory that `gtpo plan` predicts with the memory that training takes, on a CPU.

    python benchmarks/plan.py MODEL_FOLDER [--tokens 512 1024] [--output docs/results/plan.json]

Each row is measured in a separate process: the growth of the resident set for what stays in memory (weights, gradients,
optimizer), and its peak above that during a forward and backward pass as TRL computes it (chunked head, gradient
checkpointing on and off).
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--output")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.model, **args.one)))
        return
    rows = []
    for bits16 in (False, True):
        for tokens in args.tokens:
            for checkpointing in (True, False):
                one = {"tokens": tokens, "bits16": bits16, "checkpointing": checkpointing}
                command = [sys.executable, __file__, args.model, "--one", json.dumps(one)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append({**one, **json.loads(done.stdout.splitlines()[-1])})
                print(row_text(rows[-1]), flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=1) + "\n")


def row_text(row: dict) -> str:
    parts = (
        f"{name} {found:.0f} MiB, planned {planned:.0f} ({planned / found:.2f})"
        for name, (found, planned) in row["mib"].items()
    )
    kind = f"{'bfloat16' if row['bits16'] else 'float32'}, {row['tokens']} tokens, "
    return kind + ("checkpointing" if row["checkpointing"] else "no checkpointing") + ": " + "; ".join(parts)


def measure(model_folder: str, tokens: int, bits16: bool, checkpointing: bool) -> dict:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from gtpo.planning.memory import TILES_ON_CPU, Sharding, activation_bytes, static_bytes
    from gtpo.planning.shape import shape_of_config

    torch.set_num_threads(2)
    shape = shape_of_config(AutoConfig.from_pretrained(model_folder))
    size = 2 if bits16 else 4
    before = resident()
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16 if bits16 else torch.float32)
    for parameter in model.parameters():  # else the file's pages are shared with the kernel
        parameter.data = parameter.data.clone()
    gc.collect()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    add_fused_lm_head(model)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(0, shape.vocab, (2, tokens // 2))
    step(model, ids)  # gradients are there from here on
    optimizer.step()
    gc.collect()
    static = resident()
    reset_peak()
    step(model, ids)
    activations = peak() - static
    planned = static_bytes(shape, shape.parameters, size, size, 2 * size, Sharding())
    found = {
        "weights": (weights, planned["weights"]),
        "weights, gradients, optimizer": (static - before, sum(planned.values())),
        "activations": (activations, activation_bytes(shape, tokens, bits16, checkpointing, tiles=TILES_ON_CPU)),
    }
    return {"mib": {name: [is_there / MIB, said / MIB] for name, (is_there, said) in found.items()}}


def step(model, ids) -> None:
    model(input_ids=ids, labels=ids, fused_lm_head=True, use_cache=False).loss.backward()


def resident() -> int:
    return status("VmRSS")


def peak() -> int:
    return status("VmHWM")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
