"""Two weighted rewards. Their weighted sum is the outcome reward, assigned to the last turn of a rollout.

python examples/weighted_rewards.py MODEL        # a folder or Hub id of a model with a chat template
"""

from __future__ import annotations

import sys

from datasets import Dataset

from gtpo import GTPOConfig, GTPOTrainer

PAIRS = [(a, b) for a in range(12, 20) for b in range(12, 20)]
ROWS = [{"prompt": f"What is {a} * {b}?", "answer": str(a * b)} for a, b in PAIRS]


def correct(completions, answer, **columns):
    """1 if the last turn holds the answer, else 0."""
    return [float(gold in turns[-1]["content"]) for turns, gold in zip(completions, answer, strict=True)]


def short(completions, **columns):
    """1 for a last turn of one line, 0 for one of more than twenty lines."""
    return [1 - min(turns[-1]["content"].count("\n"), 20) / 20 for turns in completions]


if __name__ == "__main__":
    args = GTPOConfig(
        "runs/weighted_rewards",
        max_steps=20,
        num_generations=8,
        max_turns=4,
        logging_steps=1,
        reward_weights=[1.0, 0.2],
    )
    trainer = GTPOTrainer(sys.argv[1], [correct, short], args, Dataset.from_list(ROWS))
    trainer.train()
