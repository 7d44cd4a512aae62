"""The samples of an evaluation under way, on disk: a line each as soon as it is verified, so that a kill loses none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from gtpo.errors import ConfigError, DataError


class Journal:
    """A JSON Lines file: a first line that says what is evaluated, then a line a sample.

    Args:
        path: the file; None keeps nothing.
        header: what is evaluated and how. A file that was begun under another header is refused.

    Raises:
        ConfigError: the file belongs to another evaluation; the message says which field differs.
        DataError: the file is damaged before its last line.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self._file: IO[str] | None = None
        self.samples: dict[int, dict[str, Any]] = {}
        self.passed = 0
        if path is None:
            return
        header = json.loads(json.dumps(header, default=str))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read(path, header)
            self._file = path.open("a", encoding="utf-8")
        else:
            self._file = path.open("w", encoding="utf-8")
            self._write(header)

    def add(self, number: int, sample: Mapping[str, Any]) -> None:
        """Keep a sample."""
        self._take(number, dict(sample))
        if self._file:
            self._write({"number": number, **sample})

    def _take(self, number: int, sample: dict[str, Any]) -> None:
        self.samples[number] = sample
        self.passed += bool(sample["passed"])

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def _read(self, path: Path, header: Mapping[str, Any]) -> None:
        """Takes over what is there; a last line that a kill cut short is taken off the file."""
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            with path.open("rb+") as file:
                file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            with path.open("w", encoding="utf-8") as file:
                file.write(json.dumps(header) + "\n")
            return
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"damaged ({error}); delete the file to start afresh", path=path, line=number) from None
            if number > 1:
                self._take(record.pop("number"), record)
            elif different := differing(record, header):
                raise ConfigError(
                    f"{path} holds samples of another evaluation ({'; '.join(different)}): give another --output, the "
                    "same options, or delete it"
                )


def differing(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two nested mappings differ, each with both values."""
    found = []
    for name in sorted({*first, *second}, key=str):
        one, other = first.get(name), second.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differing(one, other, f"{prefix}{name}.")
        elif one != other:
            found.append(f"{prefix}{name}: {_short(one)} and {_short(other)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
