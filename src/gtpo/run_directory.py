"""A run's directory: the names of its files, and their reader, which also works while the run is in progress.

`docs/run-directory.md` documents the files. Directories of schema 1 and 2 are read as if they were of schema 3.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gtpo._yaml import read_yaml
from gtpo.credit_assignment import CreditSettings
from gtpo.errors import ConfigError, DataError

SCHEMA_VERSION = 3
"""Changes whenever a recorded field changes its name or meaning. 3: the names of CHANGELOG.md."""
METRICS, CONFIG, ROLLOUTS, CHECKPOINTS = "metrics.jsonl", "config.yaml", "rollouts", "checkpoints"
_STEP = re.compile(r"step_(\d+)\.jsonl(\.gz)?")
SETTINGS: Mapping[str, Any] = {
    "algorithm": "gtpo",
    **asdict(CreditSettings()),
    "similarity": "lexical",
    "max_turns": None,
    "learning_rate": None,
    "num_generations": None,
    "seed": None,
}
"""Settings of a run that the page shows, with the values to assume for settings that a run did not record."""
_FORMER_SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "scope": ("normalize_over", {"pooled": "all_turns", "initial": "first_turns", "turn": "same_turn"}),
    "on_uniform_outcome": ("zero_uniform_groups", {"keep": False, "zero": True}),
}
"""Options of schema 2 and before, and their names and values today."""
_FORMER_STATUS = {"infra": "tool_failure"}


class RunFiles:
    """The files of one run.

    Args:
        path: its directory.

    Raises:
        DataError: it is not a run's directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._known: dict[int, tuple[str, Any]] = {}
        if not (self.path / METRICS).exists() and not (self.path / ROLLOUTS).is_dir():
            raise DataError("not a run's directory: it has neither metrics.jsonl nor rollouts/", path=self.path)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.resolve().name

    def stamp(self) -> str:
        """A value that changes whenever a file of the run changes."""
        paths = [self.path / METRICS, self.path / CONFIG, *sorted((self.path / ROLLOUTS).glob("*"))]
        return hashlib.sha256(" ".join(map(_stamp, paths)).encode()).hexdigest()[:16]

    def cached(self, step: int, make: Callable[[int, list[dict[str, Any]]], Any], again: bool = False) -> Any:
        """The result of `make(step, rollouts)`, and the rollouts; recomputed only if the step's file has changed.

        Args:
            step: the step.
            make: returns a tuple.
            again: read the rollouts in any case; otherwise they are empty if the result was cached.
        """
        stamp = _stamp(self._file(step))
        known = self._known.get(step)
        rows: list[dict[str, Any]] = []
        if again or known is None or known[0] != stamp:
            rows = self.rollouts(step)
            known = self._known[step] = (stamp, make(step, rows))
        return (*known[1], rows)

    def _file(self, step: int) -> Path:
        return rollouts_path(self.path, step)

    def settings(self) -> dict[str, Any]:
        """The run's values of the settings in `SETTINGS`, and the model.

        Raises:
            DataError: config.yaml can't be read.
        """
        try:
            document = read_config(self.path)
        except ConfigError as error:
            raise DataError(str(error)) from error
        parts = [document.get(name) for name in ("config", "model")]
        config, model = (part if isinstance(part, dict) else {} for part in parts)
        config = _renamed(config)
        found = {name: config.get(name, default) for name, default in SETTINGS.items()}
        plain = {name: value if _is_plain(value) else str(value) for name, value in found.items()}
        return {**plain, "model": model.get("model_name_or_path")}

    def metrics(self) -> list[dict[str, float]]:
        """One mapping per logged step, with numbers only. A line that is still being written is left out."""
        return read_metrics(self.path)

    def steps(self) -> list[int]:
        """Steps whose rollouts are recorded, in order."""
        found = map(step_of_rollouts, (self.path / ROLLOUTS).glob("step_*.jsonl*"))
        return sorted({step for step in found if step is not None})

    def rollouts(self, step: int) -> list[dict[str, Any]]:
        """The rollouts of a step; fields that schema 1 lacks are filled in, and names of schema 2 are updated.

        Raises:
            DataError: the file can't be read; names it and the line.
        """
        path = self._file(step)
        rows = []
        try:
            raw = path.read_bytes()
            lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode(errors="replace").splitlines()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"can't be read: {error}", path=path) from error
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line, parse_constant=lambda _: None)  # a browser knows no NaN and no Infinity
                row.setdefault("rollout", number - 1)
                row.setdefault("similarities", {})
                row["stop_reason"] = _FORMER_STATUS.get(row["stop_reason"], row["stop_reason"])
                row.setdefault("masked", row["stop_reason"] == "tool_failure")
                row.setdefault("problem_id", "")
                has_call = any(turn["calls"] for turn in row["turns"])
                for j, turn in enumerate(row["turns"]):
                    penalised = turn["r_format"] < 0 and (j > 0 or has_call)
                    turn.setdefault("invalid", penalised or any("invalid" in call for call in turn["calls"]))
                    turn.setdefault("token_chars", None)
                    turn.setdefault("logprobs", None)
                    turn["statuses"] = [_FORMER_STATUS.get(status, status) for status in turn["statuses"]]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"not a recorded rollout: {error!r}", path=path, line=number) from error
            rows.append(row)
        return rows


def step_of_rollouts(path: Path) -> int | None:
    """The step of a rollouts file, from its name; None for any other file."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def read_config(run_dir: str | Path) -> dict[str, Any]:
    """The contents of config.yaml; empty if there is no such file, or no mapping in it.

    Raises:
        ConfigError: the file can't be read; says why, and what to do.
    """
    path = Path(run_dir) / CONFIG
    if not path.exists():
        return {}
    try:
        document = read_yaml(path)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; fix the file, or remove it: the records can be read without it") from error
    return document if isinstance(document, dict) else {}


def rollouts_path(run_dir: str | Path, step: int) -> Path:
    """The file with the rollouts of a step: compressed, or uncompressed as before schema 3."""
    path = Path(run_dir) / ROLLOUTS / f"step_{step:06d}.jsonl"
    return path if path.exists() else path.with_suffix(".jsonl.gz")


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """One mapping per logged step, with numbers only; empty without a file. A line still being written is left out."""
    path = Path(run_dir) / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append({_metric(name): value for name, value in row.items() if _is_number(value)})
    return rows


def _metric(name: str) -> str:
    """Today's name of a metric."""
    kind, _, last = name.rpartition("/")
    return f"{kind}/{_FORMER_STATUS[last]}" if last in _FORMER_STATUS else name


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run under today's names; before schema 3 no advantage was clipped."""
    found = {"advantage_clip": 0.0} if _FORMER_SETTINGS.keys() & config.keys() else {}
    for name, value in config.items():
        new, values = _FORMER_SETTINGS.get(name, (name, {}))
        found[new] = values.get(value, value) if values else value
    return found


def distinct_names(runs: Sequence[RunFiles]) -> list[str]:
    """The names of the runs' folders, with as many parent folders as needed to distinguish them."""
    parts = [run.path.resolve().parts for run in runs]
    depth = 1
    while depth < max(map(len, parts)) and len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) < 1e300


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, str)) or _is_number(value)


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "none"
    return f"{path.name}/{found.st_size}/{found.st_mtime_ns}"
