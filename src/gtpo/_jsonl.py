"""Reading JSON Lines with errors that name the file and the line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gtpo._text import each_text, well_formed
from gtpo.errors import DataError

MOST_DIGITS = 4300
"""Largest number of digits of an integer: Python's own limit."""
MOST_LINE_BYTES = 64 << 20
_BINARY = {b"\x1f\x8b": "gzip", b"PK": "zip", b"PAR1": "Parquet", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstandard"}


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """1-based line numbers and the objects on them, without blank lines; for a broken line, its error.

    A byte-order mark and Windows line endings are ignored; a lone surrogate, which UTF-8 can't encode, is replaced
    (`gtpo._text`).

    Raises:
        DataError: the file is missing, can't be read or is binary.
    """
    for number, raw in _numbered_lines(path):
        try:
            yield number, json_object(raw, path, number)
        except DataError as fault:
            yield number, fault


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`numbered_rows` that raises the first error."""
    for number, row in numbered_rows(path):
        if isinstance(row, DataError):
            raise row
        yield number, row


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """1-based line numbers and lines, blank lines left out."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MOST_LINE_BYTES + 1):
                number += 1
                if number == 1:
                    _refuse_binary(raw, path)
                if len(raw) > MOST_LINE_BYTES:
                    raise DataError(f"a line of more than {MOST_LINE_BYTES >> 20} MiB", path=path, line=number)
                if raw.strip():
                    yield number, raw
    except FileNotFoundError:
        raise DataError(f"no such file (looked for {path.absolute()})", path=path) from None
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror}); give a readable JSON Lines file", path=path) from error


def _refuse_binary(head: bytes, path: Path) -> None:
    kind = next((name for magic, name in _BINARY.items() if head.startswith(magic)), None)
    if kind is None and head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError("UTF-16; save the file as UTF-8", path=path)
    if kind is not None or b"\0" in head[:4096]:
        raise DataError(f"not text but {kind or 'binary'}; give JSON Lines, one JSON object per line", path=path)


def json_object(raw: bytes, path: Path, number: int) -> dict[str, Any]:
    """The object on a line.

    Raises:
        DataError: the line is not UTF-8, not JSON or no object, has a field twice, or has a number that JSON or Python
            can't represent.
    """
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        message = f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); save the file as UTF-8"
        raise DataError(message, path=path, line=number) from None
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        message = f"broken JSON at column {error.colno}: {error.msg}; write one JSON object per line"
        raise DataError(message, path=path, line=number) from None
    except _FaultError as error:
        raise DataError(str(error), path=path, line=number, field=error.field) from None
    except RecursionError:
        raise DataError("JSON nested too deeply; flatten it", path=path, line=number) from None
    if not isinstance(row, dict):
        message = f"a JSON {json_type(row)}, not an object; write {{...}}"
        raise DataError(message, path=path, line=number)
    return each_text(row, well_formed) if "\\ud" in text or "\\uD" in text else row


@dataclass(frozen=True)
class _Unusable:
    """Stands for a number that can't be used."""

    fault: str


class _FaultError(Exception):
    """What is wrong with a field."""

    def __init__(self, fault: str, field: str) -> None:
        super().__init__(fault)
        self.field = field


def _checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose fields each occur once and can be used."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _FaultError("occurs twice; keep one", twice)
    for name, value in pairs:
        if unusable := _first_unusable(value):
            raise _FaultError(unusable.fault, name)
    return found


def _first_unusable(value: Any) -> _Unusable | None:
    if isinstance(value, list):
        return next((found for part in value if (found := _first_unusable(part))), None)
    return value if isinstance(value, _Unusable) else None


def _whole(digits: str) -> Any:
    if len(digits) <= MOST_DIGITS:
        return int(digits)
    return _Unusable(f"a whole number of {len(digits)} digits; write it as text, in quotes")


def _fraction(digits: str) -> Any:
    number = float(digits)
    return number if math.isfinite(number) else _constant(digits[:40])


def _constant(name: str) -> Any:
    return _Unusable(f"{name} is not a finite number; give a number, or text in quotes")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_checked, parse_int=_whole, parse_float=_fraction, parse_constant=_constant
)


def json_type(value: object) -> str:
    """What a value of parsed JSON is called."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
