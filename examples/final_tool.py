"""A tool that ends the rollout: the model submits its answer with a call.

python examples/final_tool.py MODEL        # a folder or Hub id of a model with a chat template
"""

from __future__ import annotations

import sys

from datasets import Dataset

from gtpo import GTPOConfig, GTPOTrainer
from gtpo.rollout import ToolResult

PAIRS = [(a, b) for a in range(12, 20) for b in range(12, 20)]
ROWS = [{"prompt": f"What is {a} * {b}?", "answer": str(a * b)} for a, b in PAIRS]


def submit(value: int) -> ToolResult:
    """Hand in the answer. This ends your work.

    Args:
        value: the answer.
    """
    return ToolResult(f"submitted {value}", final=True)


def submitted(completions, answer, **columns):
    """1 if the right number was submitted, else 0."""
    last = [turns[-1]["content"] for turns in completions]
    return [float(text == f"submitted {gold}") for text, gold in zip(last, answer, strict=True)]


if __name__ == "__main__":
    args = GTPOConfig("runs/final_tool", max_steps=20, num_generations=8, max_turns=4, logging_steps=1)
    trainer = GTPOTrainer(sys.argv[1], submitted, args, Dataset.from_list(ROWS), tools=[submit])
    trainer.train()
