"""The table of `log_completions`: our columns next to TRL's, and corrections of TRL's columns."""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping, Sequence
from typing import Any

from gtpo._text import each_text, for_terminal
from gtpo.training.batch import Batch


def replace_last(column: deque[float], values: Sequence[float]) -> None:
    """Replace as many of the last values of a column by these values."""
    for _ in values:
        column.pop()
    column.extend(values)


def make_printable(table: MutableMapping[str, deque[Any]]) -> None:
    """Escape what a model wrote before it reaches the terminal; the record keeps it unchanged."""
    for name in ("prompt", "completion"):
        texts = table[name]
        for _ in range(len(texts)):
            texts.append(each_text(texts.popleft(), for_terminal))


def turn_columns(batch: Batch) -> dict[str, list[Any]]:
    """Columns of the table of `log_completions` for the rollouts of this process: the reward of each reward function
    (`reward/NAME`), and per turn the user-defined rewards (`turn_reward/NAME`), rewards, returns and advantages."""
    mine = batch.inputs[batch.first : batch.first + len(batch.trajectories)]
    by_function = {f"reward/{name}": [parts[name] for parts in batch.parts] for name in next(iter(batch.parts), {})}
    own = {f"turn_reward/{name}": [_row(item.turn_rewards[name]) for item in mine] for name in mine[0].turn_rewards}
    named = {"rewards": "rewards_B_K", "returns": "returns_B_K", "advantages": "advantages_B_K"}
    values = {name: getattr(batch.credit, field).tolist() for name, field in named.items()}
    credit = {
        f"turn_{name}": [
            _row(rows[batch.first + i][: len(trajectory.turns)]) for i, trajectory in enumerate(batch.trajectories)
        ]
        for name, rows in values.items()
    }
    return {**by_function, **own, **credit}


def _row(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
