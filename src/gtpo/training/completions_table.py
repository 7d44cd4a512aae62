"""The table of `log_completions`: our columns beside TRL's, and what TRL put there that is not so."""

from __future__ import annotations

from collections import deque
from collections.abc import MutableMapping, Sequence
from typing import Any

from gtpo._text import each_text, for_terminal
from gtpo.training.batch import Batch


def replace_last(column: deque[float], values: Sequence[float]) -> None:
    """Put these values into the place of as many that were added last."""
    for _ in values:
        column.pop()
    column.extend(values)


def make_printable(table: MutableMapping[str, deque[Any]]) -> None:
    """What a model wrote must not reach the terminal raw; the record has it."""
    for name in ("prompt", "completion"):
        texts = table[name]
        for _ in range(len(texts)):
            texts.append(each_text(texts.popleft(), for_terminal))


def turn_columns(batch: Batch) -> dict[str, list[Any]]:
    """For the table of `log_completions`, of the rollouts of this process: what each reward function gave
    (`reward/NAME`), and turn by turn the user's own rewards (`turn_reward/NAME`), rewards, returns and advantages."""
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
