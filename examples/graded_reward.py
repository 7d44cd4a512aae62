"""A graded reward: the closer the number, the higher the reward; a rollout passes if it reaches `success_threshold`.

python examples/graded_reward.py MODEL        # a folder or Hub id of a model with a chat template
"""

from __future__ import annotations

import re
import sys

from datasets import Dataset

from gtpo import GTPOConfig, GTPOTrainer

PAIRS = [(a, b) for a in range(12, 20) for b in range(12, 20)]
ROWS = [{"prompt": f"What is {a} * {b}?", "answer": str(a * b)} for a, b in PAIRS]


def closeness(completions, answer, **columns):
    """1 for the right number, lower the further off the last turn's last number is, 0 if there is no number."""
    scores = []
    for turns, gold in zip(completions, answer, strict=True):
        found = re.findall(r"\d{1,6}", turns[-1]["content"])
        scores.append(1 / (1 + abs(int(found[-1]) - int(gold)) / 10) if found else 0.0)
    return scores


if __name__ == "__main__":
    args = GTPOConfig(
        "runs/graded_reward", max_steps=20, num_generations=8, max_turns=4, logging_steps=1, success_threshold=0.99
    )
    trainer = GTPOTrainer(sys.argv[1], closeness, args, Dataset.from_list(ROWS))
    trainer.train()
