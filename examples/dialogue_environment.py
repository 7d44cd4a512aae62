"""A dialogue as a rollout: the environment plays the user and answers each turn that makes no call.

python examples/dialogue_environment.py MODEL        # a folder or Hub id of a model with a chat template
"""

from __future__ import annotations

import sys

from datasets import Dataset

from gtpo import GTPOConfig, GTPOTrainer

ANIMALS = {"cat": "It purrs.", "dog": "It barks.", "cow": "It gives milk.", "owl": "It flies at night."}
TASK = "I think of an animal. Ask me about it, or say: It is the ..."
ROWS = [{"prompt": [{"role": "user", "content": TASK}], "animal": animal} for animal in ANIMALS]


class Riddle:
    """Thinks of an animal and answers questions about it."""

    def reset(self, animal, **columns):
        """Think of the row's animal."""
        self.animal, self.hints, self.done, self.asked = animal, 0, False, False

    def respond(self, message):
        """Return the next user message; None would end the rollout, as `done` does."""
        self.asked = message.rstrip().endswith("?")
        if self.animal in message.lower():
            self.done = True
            return "Right!"
        if self.asked:
            self.hints += 1
            return ANIMALS[self.animal] if self.hints == 1 else "I have told you."
        return "No. Ask me something."

    def get_turn_reward(self):
        """A small reward for a question that gets a hint."""
        return 0.1 if self.asked and self.hints == 1 else 0.0

    def get_reward(self):
        """1 if the animal was guessed."""
        return float(self.done)


if __name__ == "__main__":
    args = GTPOConfig("runs/dialogue", max_steps=20, num_generations=8, max_turns=6, logging_steps=1)
    trainer = GTPOTrainer(sys.argv[1], None, args, Dataset.from_list(ROWS), environment_factory=Riddle)
    trainer.train()
