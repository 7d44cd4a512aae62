"""What a turn costs besides its generation: decoding it, finding its calls, and encoding its observation.

    python benchmarks/encoding.py [--rounds 7] [--turns 240]

It prints the CPU time per turn, the best of all rounds, for chat-template formats (`fenced`, `tool_call`) and for model
families of `renderers`. A turn has 40 short sentences and a program of 21 lines. To compare two versions, run it
alternately with PYTHONPATH set to the `src` of each.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from families import PROMPT, family_tokenizer, template_tokenizer

from gtpo.rollout import ChatEncoder, get_format
from gtpo.rollout.native import RendererEncoder
from gtpo.rollout.tool_spec import PYTHON

_TURNS_PER_ROLLOUT = 4


def cost(encoder: Any, turns: int) -> float:
    """CPU seconds per turn."""
    code = "x = 1\n" * 20 + "print(x)"
    sampled = encoder.tokenizer.encode(encoder.format.render_turn("Let me see. " * 40, code), add_special_tokens=False)
    prompt = encoder.prompt_ids(PROMPT)
    start = time.process_time()
    for _ in range(turns // _TURNS_PER_ROLLOUT):
        context = list(prompt)
        for _ in range(_TURNS_PER_ROLLOUT):
            ids = (*sampled, encoder.end_id)
            encoder.text(ids)
            assert len(encoder.parse_turn(ids, context)) == 1
            context += [*ids, *encoder.observation_ids(["42" * 20], ids, context)]
    return (time.process_time() - start) / turns


def main() -> None:
    """Print a line per encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turns", type=int, default=240)
    options = parser.parse_args()
    qwen = template_tokenizer("qwen2_5.jinja")
    encoders = {name: ChatEncoder(qwen, get_format(name)) for name in ("fenced", "tool_call")}
    families = {
        name: RendererEncoder(family_tokenizer(name), name, (PYTHON,)) for name in ("qwen3", "qwen3.5", "glm-5")
    }
    for name, encoder in {**encoders, **families}.items():
        best = min(cost(encoder, options.turns) for _ in range(options.rounds))
        print(f"{name:12} {1e6 * best:6.0f} microseconds per turn")


if __name__ == "__main__":
    main()
