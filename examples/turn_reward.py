"""Turn rewards: one of your own and one that ships with gtpo.

python examples/turn_reward.py MODEL        # a folder or Hub id of a model with a chat template
"""

from __future__ import annotations

import sys

from datasets import Dataset

from gtpo import GTPOConfig, GTPOTrainer
from gtpo.turn_rewards import execution_feedback

PAIRS = [(a, b) for a in range(12, 20) for b in range(12, 20)]
ROWS = [{"prompt": f"What is {a} * {b}?", "answer": str(a * b)} for a, b in PAIRS]


def correct(completions, answer, **columns):
    """1 if the last turn holds the answer, else 0."""
    return [float(gold in turns[-1]["content"]) for turns, gold in zip(completions, answer, strict=True)]


def brief(trajectories, **columns):
    """-1 for a turn of over 400 characters, else 0; one number for each turn of each rollout."""
    return [[-float(len(turn.text) > 400) for turn in rollout.turns] for rollout in trajectories]


if __name__ == "__main__":
    args = GTPOConfig(
        "runs/turn_reward",
        max_steps=20,
        num_generations=8,
        max_turns=4,
        logging_steps=1,
        turn_reward_weights=[0.1, 0.2],
    )
    trainer = GTPOTrainer(
        sys.argv[1], correct, args, Dataset.from_list(ROWS), turn_reward_funcs=[brief, execution_feedback]
    )
    trainer.train()
