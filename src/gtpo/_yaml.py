"""Reading a user's YAML file, with a one-sentence error for anything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_NODES = 100_000
MAX_DEPTH = 50


def read_yaml(path: str | Path) -> Any:
    """The document in a file. Aliases are resolved, as long as the result stays small.

    Raises:
        ValueError: the file can't be read; says why in one line, without the file's name.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError("can't be read: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from error
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """`read_yaml` for a string."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {_one_line(error)}") from error
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep; flatten it") from None
    except ValueError as error:  # dates that are none, integers past Python's limit of digits
        raise ValueError(f"holds a value that can't be read: {_one_line(error)}") from None
    _check_size(document)
    return document


def _check_size(document: Any) -> None:
    """Refuse documents that aliases make huge or cyclic, before anything traverses them."""
    stack, nodes = [(document, 1)], 0
    while stack:
        value, depth = stack.pop()
        nodes += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} levels deep (an alias of itself?); flatten it")
        if nodes > MAX_NODES:
            raise ValueError(f"holds more than {MAX_NODES:,} values, aliases resolved; write it without aliases")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise ValueError("holds an integer of more than 64 bits; make it smaller, or write it as text in quotes")
        if isinstance(value, dict):
            stack += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list | tuple | set):
            stack += [(item, depth + 1) for item in value]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
