"""An OpenEnv server: a number is guessed, and each session has its own. Run as `python openenv_server.py PORT`."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Guess(Action):
    """A guess."""

    number: int


class Hint(Observation):
    """What is said of it."""

    text: str = ""


class Guessing(Environment[Guess, Hint, State]):
    """Guess the number."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.secret, self.tries = 0, 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Hint:
        """Think of the number `seed`."""
        self.secret, self.tries = seed or 0, 0
        return Hint(text="Guess a number.", done=False, reward=0.0)

    def step(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Hint:
        """Judge a guess."""
        self.tries += 1
        right = action.number == self.secret
        text = "right" if right else "higher" if action.number < self.secret else "lower"
        return Hint(text=text, done=right, reward=float(right))

    @property
    def state(self) -> State:
        """Where it stands."""
        return State(step_count=self.tries)


if __name__ == "__main__":
    app = create_fastapi_app(Guessing, Guess, Hint, max_concurrent_envs=8)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
