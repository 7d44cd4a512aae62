"""How much keeping freed memory saves on a CPU: one forward and backward pass of a small Llama, with and without it.

    python benchmarks/allocator.py [--rounds 3] [--vocab 49152]

Each measurement runs in a separate process, one after another, because the setting can't be undone. glibc only.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

STEP = """
import sys, time, torch
from transformers import LlamaConfig, LlamaForCausalLM
if sys.argv[1] == "kept":
    from gtpo._malloc import keep_freed_memory
    assert keep_freed_memory(), "not glibc"
torch.manual_seed(0)
config = LlamaConfig(vocab_size=int(sys.argv[2]), hidden_size=576, intermediate_size=1536, num_hidden_layers=6,
                     num_attention_heads=9, num_key_value_heads=3)
model = LlamaForCausalLM(config).to(torch.bfloat16)
ids = torch.randint(0, config.vocab_size, (8, 256))
for _ in range(3):
    start = time.perf_counter()
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad()
    wall = time.perf_counter() - start
print(wall)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=49152)
    args = parser.parse_args()
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
