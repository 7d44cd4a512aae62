"""Parsing shared by the subcommands: a YAML file and flags through TRL's `TrlParser`, with clear errors."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NoReturn

from trl import TrlParser

from gtpo._options import check_numbers
from gtpo._text import did_you_mean, show
from gtpo._yaml import read_yaml
from gtpo.commands.help_text import help_parser
from gtpo.errors import ConfigError
from gtpo.tasks.row_forms import Columns, parse_columns

ALIASES = {"model": "model_name_or_path"}
"""Short names, for flags and for keys of a config file."""


@dataclass(frozen=True)
class CommandLine:
    """The options of a command: dataclass fields, set by a YAML file and flags.

    Attributes:
        prog: the command, such as "gtpo train".
        about: what it does, in a sentence.
        types: dataclasses; each field is an option, and its help text is the option's.
        usage: what follows the command's name on the first line of its help.
        defaults: name of a config file in `gtpo.lab.tiny` with defaults, which the user's config file overrides.
    """

    prog: str
    about: str
    types: tuple[Any, ...]
    usage: str | None = None
    defaults: str | None = None

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """The dataclasses, filled from `--config FILE.yaml` and flags, which override it; `--help` prints and exits.

        Raises:
            ConfigError: an unknown key or flag (the message names the nearest known one), a missing or broken config
                file, or a value that a dataclass refuses.
        """
        argv = [_unaliased(arg) for arg in argv]
        if shown := {"-h", "--help", "--help_all", "--help-all"}.intersection(argv):
            show(self.help_parser(everything=any("all" in arg for arg in shown)).format_help())
            raise SystemExit(0)
        parser = self._parser()
        known = {field.name for kind in self.types for field in dataclasses.fields(kind)}
        origins: dict[str, Path] = {}
        parser.error = partial(_refuse, origins)  # type: ignore[method-assign]  # argparse would print every option
        argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
        argv = _with_config(argv, known, origins)
        if self.defaults:
            with self._defaults() as path:
                argv = _with_config(["--config", str(path), *argv], known, origins)
        _check_flags(argv, known)
        try:
            parsed = parser.parse_args_and_config(argv)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for options in parsed:
            check_numbers(options)
        return parsed

    def help_parser(self, *, everything: bool = False) -> argparse.ArgumentParser:
        """The parser behind `--help` and shell completion; see `gtpo.commands.help_text`."""
        parser = self._parser()
        if self.defaults:
            with self._defaults() as path:
                parser.set_defaults(**read_yaml(path))
        return help_parser(parser, self.types, ALIASES, usage=self.usage, everything=everything)

    def _parser(self) -> TrlParser:
        return TrlParser(list(self.types), prog=self.prog, description=self.about, allow_abbrev=False)

    def _defaults(self) -> AbstractContextManager[Path]:
        return as_file(files("gtpo.lab.tiny") / str(self.defaults))


def positional(argv: Sequence[str], option: str) -> list[str]:
    """The arguments, with `--option` inserted before the first one if that is a value."""
    return [f"--{option}", *argv] if argv and not argv[0].startswith("-") else list(argv)


def _unaliased(arg: str) -> str:
    name, equals, value = arg.removeprefix("--").partition("=")
    if arg.startswith("--") and name in ALIASES:
        return f"--{ALIASES[name]}{equals}{value}"
    return arg


def _with_config(argv: list[str], known: set[str], origins: dict[str, Path]) -> list[str]:
    """Check the keys of the config file, put them before the flags so that flags win, and record their origin."""
    if "--config" not in argv:
        return argv
    place = argv.index("--config")
    if place + 1 == len(argv):
        raise ConfigError("--config needs the path of a YAML file")
    path = Path(argv[place + 1])
    try:
        config = read_yaml(path)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: must hold a mapping from option names to values")
    for key in config:
        if key not in known and key not in ALIASES and key != "env":
            raise ConfigError(f"{path}: unknown key {key!r}{_nearest(key, known)}")
    if not isinstance(config.get("env", {}), dict):
        raise ConfigError(f"{path}: env: must be a mapping from variable names to values")
    os.environ.update({str(name): str(value) for name, value in config.get("env", {}).items()})
    given = {arg.removeprefix("--").partition("=")[0] for arg in argv}
    own = {ALIASES.get(str(key), str(key)): value for key, value in config.items() if key != "env"}
    own = {key: value for key, value in own.items() if key not in given and value is not None}
    origins.update({key: path for key in own if key not in origins})
    flags = [part for key, value in own.items() for part in _as_flags(key, value)]
    return [*flags, *argv[:place], *argv[place + 2 :]]


def _refuse(origins: Mapping[str, Path], message: str) -> NoReturn:
    """Replaces argparse's handler, which prints the usage of every option and exits."""
    message = re.sub(r"\S{100,}", lambda found: f"{found[0][:50]}...", message)
    match = re.fullmatch(r"argument --([^/: ]+)[^:]*: (.*)", message, re.DOTALL)
    if match is None:
        raise ConfigError(message)
    name, fault = match.groups()
    raise ConfigError(f"{origins[name]}: {name}: {fault}" if name in origins else f"--{name}: {fault}")


def _as_flags(key: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{key}", json.dumps(value)]
    return [f"--{key}={value}"]


def _check_flags(argv: Sequence[str], known: set[str]) -> None:
    for arg in argv:
        name = arg.removeprefix("--").partition("=")[0].replace("-", "_")
        if arg.startswith("--") and name not in known and name.removeprefix("no_") not in known and name != "help":
            raise ConfigError(f"unknown option --{name}{_nearest(name, known)}")


def _nearest(name: str, known: set[str]) -> str:
    return did_you_mean(name, known | set(ALIASES)) or "; --help_all lists the known options"


@dataclass
class ColumnArguments:
    """Data."""

    columns: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "How to read rows that are not recognised: question=COLUMN,answer=COLUMN (also id, messages, "
            "solution), or MODULE:FUNCTION or ./FILE.py:FUNCTION that converts each row."
        },
    )

    def row_columns(self) -> Columns:
        """The parsed value of `--columns`.

        Raises:
            ConfigError: the value can't be used.
        """
        return parse_columns(self.columns)
