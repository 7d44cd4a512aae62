"""Reads a run's directory, also while the run goes on: see `docs/run-directory.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gtpo.errors import DataError

SETTINGS: Mapping[str, Any] = {
    "algorithm": "gtpo",
    "gamma": 0.9,
    "alpha": 0.5,
    "format_penalty": -0.1,
    "scope": "pooled",
    "on_uniform_outcome": "keep",
    "turn_rewards": True,
    "turn_returns": True,
    "similarity": "lexical",
    "max_turns": None,
    "learning_rate": None,
    "num_generations": None,
    "seed": None,
}
"""Settings of a run that the page shows, with what stands in for those that an older run did not record."""


class RunFiles:
    """The files of one run.

    Args:
        path: its directory.

    Raises:
        DataError: it is no run's directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "metrics.jsonl").exists() and not (self.path / "rollouts").is_dir():
            raise DataError("is no run: it has neither metrics.jsonl nor rollouts/", path=self.path)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.resolve().name

    def settings(self) -> dict[str, Any]:
        """What `SETTINGS` names, as the run had it; and the model."""
        path = self.path / "config.yaml"
        document = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None) or {}
        config = document.get("config", {})
        model = document.get("model") or {}
        found = {name: config.get(name, default) for name, default in SETTINGS.items()}
        return {**found, "model": model.get("model_name_or_path")}

    def metrics(self) -> list[dict[str, float]]:
        """One mapping a logged step: numbers only. A line that is still being written is left out."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        rows = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append({name: value for name, value in row.items() if _is_number(value)})
        return rows

    def steps(self) -> list[int]:
        """Steps whose rollouts are recorded, in order."""
        return sorted(int(path.stem.removeprefix("step_")) for path in (self.path / "rollouts").glob("step_*.jsonl"))

    def rollouts(self, step: int) -> list[dict[str, Any]]:
        """The rollouts of a step; fields that schema 1 lacks are filled in.

        Raises:
            DataError: the file can't be read; names it and the line.
        """
        path = self.path / "rollouts" / f"step_{step:06d}.jsonl"
        rows = []
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise DataError(f"can't be read: {error.strerror}", path=path) from error
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                row.setdefault("rollout", number - 1)
                row.setdefault("similarities", {})
                for turn in row["turns"]:
                    turn.setdefault("token_chars", None)
                    turn.setdefault("logprobs", None)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"not a recorded rollout: {error!r}", path=path, line=number) from error
            rows.append(row)
        return rows


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) < 1e300
