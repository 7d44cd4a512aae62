"""An async function as a tool. Here it waits; rollouts continue in the meantime.

python examples/async_tool.py MODEL        # a folder or Hub id of a model with a chat template
"""

from __future__ import annotations

import asyncio
import sys

from datasets import Dataset

from gtpo import GTPOConfig, GTPOTrainer

PAIRS = [(a, b) for a in range(12, 20) for b in range(12, 20)]
ROWS = [{"prompt": f"What is {a} * {b}?", "answer": str(a * b)} for a, b in PAIRS]


def correct(completions, answer, **columns):
    """1 if the last turn holds the answer, else 0."""
    return [float(gold in turns[-1]["content"]) for turns, gold in zip(completions, answer, strict=True)]


async def multiply(a: int, b: int) -> int:
    """Multiply two integers.

    Args:
        a: the first one.
        b: the second one.
    """
    await asyncio.sleep(0.01)  # for example a request to a service
    return a * b


if __name__ == "__main__":
    args = GTPOConfig("runs/async_tool", max_steps=20, num_generations=8, max_turns=4, logging_steps=1)
    trainer = GTPOTrainer(sys.argv[1], correct, args, Dataset.from_list(ROWS), tools=[multiply])
    trainer.train()
