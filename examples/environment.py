"""An environment of your own: its methods are the tools, and it gives an outcome reward and a reward per turn.

python examples/environment.py MODEL        # a folder or Hub id of a model with a chat template
"""

from __future__ import annotations

import sys

from datasets import Dataset

from gtpo import GTPOConfig, GTPOTrainer

ROWS = [{"prompt": "Open the safe. Its code is between 1 and 100.", "code": code} for code in range(1, 101)]


class Safe:
    """A safe that says whether its code is higher or lower."""

    def __init__(self):
        self.done = False

    def reset(self, code, **columns):
        """Lock the safe; TRL and gtpo call this with the row's columns at the start of each rollout."""
        self.code, self.done, self.low, self.high = code, False, 1, 100
        self.useful = True

    def guess(self, number: int) -> str:
        """Try a code.

        Args:
            number: the code, between 1 and 100.
        """
        self.useful = self.low <= number <= self.high
        self.done = number == self.code
        if number < self.code:
            self.low = max(self.low, number + 1)
        else:
            self.high = min(self.high, number - 1)
        return "It opens." if self.done else "higher" if number < self.code else "lower"

    def get_turn_reward(self):
        """A small penalty for a turn without a guess that could be right."""
        useful, self.useful = self.useful, False
        return 0.0 if useful else -0.1

    def get_reward(self):
        """1 if the safe is open."""
        return float(self.done)


if __name__ == "__main__":
    args = GTPOConfig("runs/environment", max_steps=20, num_generations=8, max_turns=10, logging_steps=1)
    trainer = GTPOTrainer(sys.argv[1], None, args, Dataset.from_list(ROWS), environment_factory=Safe)
    trainer.train()
