"""What keeping freed memory saves on a CPU, and how far it grows: forward and backward passes of a small Llama.

    python benchmarks/allocator.py [--rounds 3] [--vocab 49152]
    python benchmarks/allocator.py --steps 100    # growth over steps of varying length, with and without a bound

Each measurement runs in a separate process, one after another, because the setting can't be undone. glibc only.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

MODEL = """
import random, sys, time, torch
from transformers import LlamaConfig, LlamaForCausalLM
from gtpo._malloc import KeptMemory, _resident_bytes, keep_freed_memory
if sys.argv[1] != "default":
    assert keep_freed_memory(), "not glibc"
torch.manual_seed(0)
config = LlamaConfig(vocab_size=int(sys.argv[2]), hidden_size=576, intermediate_size=1536, num_hidden_layers=6,
                     num_attention_heads=9, num_key_value_heads=3)
model = LlamaForCausalLM(config)
"""
STEP = (
    MODEL
    + """
model.to(torch.bfloat16)
ids = torch.randint(0, config.vocab_size, (8, 256))
for _ in range(3):
    start = time.perf_counter()
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad()
    wall = time.perf_counter() - start
print(wall)
"""
)

GROWTH = (
    MODEL
    + """
kept, lengths, start, returned = KeptMemory(), random.Random(0), time.perf_counter(), 0
for step in range(int(sys.argv[3])):
    ids = torch.randint(0, config.vocab_size, (8, lengths.randint(64, 256)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    model.zero_grad()
    del loss
    if sys.argv[1] == "bounded":
        returned += kept.check()
    if step == 0 or (step + 1) % 20 == 0:
        print(f"{sys.argv[1]:8} step {step + 1:4}: {_resident_bytes() / 2**30:.2f} GiB", flush=True)
print(f"{sys.argv[1]:8} {time.perf_counter() - start:.1f} s, memory returned {returned} times", flush=True)
"""
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--steps", type=int, help="show how resident memory grows over this many steps instead")
    args = parser.parse_args()
    if args.steps:
        for kind in ("kept", "bounded"):
            subprocess.run([sys.executable, "-c", GROWTH, kind, str(args.vocab), str(args.steps)], check=True)
        return
    seconds: dict[str, list[float]] = {"default": [], "kept": []}
    for _ in range(args.rounds):
        for kind, walls in seconds.items():
            command = [sys.executable, "-c", STEP, kind, str(args.vocab)]
            walls.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    for kind, walls in seconds.items():
        print(f"{kind:8} median {statistics.median(walls):.2f} s, min {min(walls):.2f}, max {max(walls):.2f}")
    ratio = statistics.median(seconds["default"]) / statistics.median(seconds["kept"])
    print(f"default / kept: {ratio:.2f}")


if __name__ == "__main__":
    main()
