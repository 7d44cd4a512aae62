"""`gtpo completion`: a shell completion script for the commands and their options."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

import shtab

from gtpo.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Print the script for a shell."""
    if "-h" in argv or "--help" in argv or not argv:
        help_parser().print_help()
        return 0
    (shell, *more) = argv
    if shell not in shtab.SUPPORTED_SHELLS or more:
        raise ConfigError(f"gtpo completion SHELL, with one of {', '.join(shtab.SUPPORTED_SHELLS)}")
    print(shtab.complete(_everything(), shell))
    return 0


def help_parser() -> argparse.ArgumentParser:
    """What `--help` prints."""
    parser = argparse.ArgumentParser(
        prog="gtpo completion",
        description="Print a completion script. For bash: gtpo completion bash > "
        "~/.local/share/bash-completion/completions/gtpo. For zsh: write it as _gtpo into a folder of $fpath.",
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="The shell that the script is for.")
    return parser


def _everything() -> argparse.ArgumentParser:
    """One parser with all commands, each as its `--help` shows it."""
    from gtpo.cli import COMMANDS

    whole = argparse.ArgumentParser(prog="gtpo", add_help=False)
    whole.add_argument("--help", action="store_true", help="Show the commands.")
    whole.add_argument("--version", action="store_true", help="Show the version.")
    commands = whole.add_subparsers()
    for name, (module, about) in COMMANDS.items():
        found = importlib.import_module(module)
        shown = found.help_parser() if hasattr(found, "help_parser") else found.COMMAND_LINE.help_parser()
        commands.add_parser(name, help=about, parents=[shown], add_help=False, conflict_handler="resolve")
    return whole
