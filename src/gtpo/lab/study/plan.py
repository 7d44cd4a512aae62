"""A study file, and its cells: every variant with every seed.

    output: runs/studies/mine          # where everything goes
    train: {...}                       # options of `gtpo train` that all cells share
    evaluate: {...}                    # options of `gtpo eval`; how rollouts are made is taken from `train`
    variants:                          # options of `gtpo train`, by the name of the variant
      grpo: {algorithm: grpo}
      gtpo: {}
    baseline: grpo                     # the others are compared with it
    seeds: [1, 2, 3]
    seeds_of: {gtpo: [1, 2, 3, 4]}     # for variants that want others
    thresholds: [0.5, 0.8]             # pass rates whose first step is reported

This module does not depend on training: options are passed on unchanged and are checked by the commands.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gtpo._files import fingerprint
from gtpo._yaml import read_yaml
from gtpo.errors import ConfigError
from gtpo.rollout import RolloutConfig

_SHARED = {item.name for item in fields(RolloutConfig)} | {"dtype", "attn_implementation", "trust_remote_code"}
"""Options that `gtpo train` and `gtpo eval` have under the same name."""
_KEYS = {"output", "train", "evaluate", "variants", "baseline", "seeds", "seeds_of", "thresholds"}
_RESERVED = {"run_dir", "seed", "resume", "resume_with_changes", "overwrite"}
"""Options of a cell that the study itself sets."""
_EVALUATE_RESERVED = {"model", "model_name_or_path", "output", "overwrite", "compare"}


@dataclass(frozen=True)
class Cell:
    """One variant with one seed.

    Attributes:
        variant, seed: the variant and the seed.
        folder: its run's directory.
        train: options of `gtpo train`.
        evaluate: options of `gtpo eval`; None if the study does not evaluate.
    """

    variant: str
    seed: int
    folder: Path
    train: Mapping[str, Any]
    evaluate: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """`VARIANT-SEED`."""
        return f"{self.variant}-{self.seed}"

    @property
    def result(self) -> Path:
        """The file of its evaluation."""
        return self.folder / "eval" / "result.json"

    @property
    def train_fingerprint(self) -> str:
        """A fingerprint of the training: of the options, and of the contents of the files that they name."""
        return _fingerprint(self.train)

    @property
    def evaluate_fingerprint(self) -> str:
        """The same for the evaluation."""
        return _fingerprint(self.evaluate or {})


def _fingerprint(options: Mapping[str, Any]) -> str:
    """For options that name files or folders, the contents count too."""
    found = [
        [str(name), repr(value), [_contents(one) for one in (value if isinstance(value, list) else [value])]]
        for name, value in options.items()
    ]
    return hashlib.sha256(json.dumps(sorted(found, key=lambda option: option[0])).encode()).hexdigest()[:16]


def _contents(value: Any) -> str | None:
    return fingerprint(value.partition("?")[0]) if isinstance(value, str) else None


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        output: its folder.
        cells: the cells in the order in which they are run: all variants with the first seed come first.
        baseline: the variant that the others are compared with.
        thresholds: pass rates whose first step is reported.
    """

    output: Path
    cells: tuple[Cell, ...]
    baseline: str
    thresholds: tuple[float, ...]

    @property
    def variants(self) -> list[str]:
        """The names of the variants, in the order of the file."""
        return list(dict.fromkeys(cell.variant for cell in self.cells))


def read_study(path: str | Path) -> Study:
    """Read a study from a YAML file.

    Raises:
        ConfigError: the file can't be read, or a key is missing, unknown or of the wrong type; names it.
    """
    path = Path(path)
    try:
        found = read_yaml(path)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must be a mapping with {', '.join(sorted(_KEYS))}")
    if unknown := sorted(set(map(str, found)) - _KEYS):
        raise ConfigError(f"{path}: unknown keys {', '.join(unknown)}; known: {', '.join(sorted(_KEYS))}")
    train = _mapping(path, found, "train")
    evaluate = _mapping(path, found, "evaluate") if found.get("evaluate") is not None else None
    variants = {
        str(name): _options(path, str(name), options) for name, options in _mapping(path, found, "variants").items()
    }
    if not variants:
        raise ConfigError(f"{path}: variants: give at least one")
    if bad := [name for name in variants if not name.replace("_", "").replace("-", "").replace(".", "").isalnum()]:
        raise ConfigError(f"{path}: variants: {bad[0]!r} can't be the name of a folder; use letters, digits, _ - .")
    baseline = str(found.get("baseline", next(iter(variants))))
    seeds_of = {str(name): seeds for name, seeds in _mapping(path, found, "seeds_of", needed=False).items()}
    for name in (baseline, *seeds_of):
        if name not in variants:
            raise ConfigError(f"{path}: there is no variant {name!r}; there are: {', '.join(variants)}")
    seeds = {name: _seeds(path, seeds_of.get(name, found.get("seeds"))) for name in variants}
    for where, options in {"train": train, **variants}.items():
        if reserved := sorted(_RESERVED & set(options)):
            raise ConfigError(f"{path}: {where}: the study itself sets {', '.join(reserved)}; remove this")
    if evaluate is not None and (reserved := sorted(_EVALUATE_RESERVED & set(map(str, evaluate)))):
        raise ConfigError(f"{path}: evaluate: the study itself sets {', '.join(reserved)}; remove this")
    output = Path(str(found.get("output") or Path("runs") / "studies" / path.stem))
    order = sorted({seed for chosen in seeds.values() for seed in chosen})
    cells = [
        _cell(output, name, seed, {**train, **options}, evaluate)
        for seed in order
        for name, options in variants.items()
        if seed in seeds[name]
    ]
    return Study(output, tuple(cells), baseline, _thresholds(path, found.get("thresholds", [0.5])))


def _cell(output: Path, variant: str, seed: int, train: Mapping[str, Any], evaluate: Mapping[str, Any] | None) -> Cell:
    folder = output / "cells" / f"{variant}-{seed}"
    shared = {name: value for name, value in train.items() if name in _SHARED}
    train = {"logging_steps": 1, **train}  # the report wants every step
    return Cell(variant, seed, folder, train, None if evaluate is None else {**shared, **evaluate})


def _mapping(path: Path, found: Mapping[str, Any], key: str, needed: bool = True) -> dict[str, Any]:
    value = found.get(key)
    if value is None and not needed:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key}: {'missing' if value is None else 'must be a mapping'}")
    return value


def _options(path: Path, name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: variants: {name}: must be a mapping of options, such as {{gamma: 0.5}}")
    return dict(value)


def _seeds(path: Path, value: Any) -> list[int]:
    if not isinstance(value, list) or not value or not all(type(seed) is int for seed in value):
        raise ConfigError(f"{path}: seeds: must be a list of whole numbers, such as [1, 2, 3]")
    if len(set(value)) < len(value):
        raise ConfigError(f"{path}: seeds: {value} contains a seed twice")
    return value


def _thresholds(path: Path, value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or not all(isinstance(v, (int, float)) and 0 < v <= 1 for v in value):
        raise ConfigError(f"{path}: thresholds: must be a list of pass rates in (0, 1]")
    return tuple(float(v) for v in value)
