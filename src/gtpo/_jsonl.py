"""Reading JSON Lines with errors that name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gtpo.errors import DataError


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """1-based line numbers and the objects on them, blank lines left out; in place of a broken line its fault.

    Raises:
        DataError: the file is missing or can't be read.
    """
    for number, raw in _numbered_lines(path):
        try:
            yield number, _json_object(raw, path, number)
        except DataError as fault:
            yield number, fault


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`numbered_rows` that raises the first fault."""
    for number, row in numbered_rows(path):
        if isinstance(row, DataError):
            raise row
        yield number, row


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """1-based line numbers and lines, blank lines left out."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield number, raw
    except FileNotFoundError:
        raise DataError(f"no such file (looked for {path.absolute()})", path=path) from None
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror}); give a readable JSON Lines file", path=path) from error


def _json_object(raw: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        message = f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); save the file as UTF-8"
        raise DataError(message, path=path, line=number) from None
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"broken JSON at column {error.colno}: {error.msg}; write one JSON object per line"
        raise DataError(message, path=path, line=number) from None
    except RecursionError:
        raise DataError("JSON nested too deeply; flatten it", path=path, line=number) from None
    if not isinstance(row, dict):
        message = f"a JSON {json_type(row)}, not an object; write {{...}}"
        raise DataError(message, path=path, line=number)
    return row


def json_type(value: object) -> str:
    """What a value of parsed JSON is called."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
