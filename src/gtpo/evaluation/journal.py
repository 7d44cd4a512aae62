"""The samples of an evaluation in progress, on disk: each is written once it is verified, so a kill loses none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from gtpo._jsonl import json_object
from gtpo._lock import locked
from gtpo.errors import ConfigError, DataError, RecordError

_NUMBER = (int, float)
_SAMPLE: Mapping[str, Any] = {
    "problem_id": str,
    "sample": int,
    "domain": str,
    "prompt": list,
    "answer": str,
    "passed": bool,
    "score": _NUMBER,
    "stop_reason": str,
    "calls": int,
    "invalid_calls": int,
    "sampled_tokens": int,
    "observed_tokens": int,
    "turns": list,
}
"""The fields that figures and comparisons need of a sample."""


class Journal:
    """A JSON Lines file: the first line says what is evaluated, and each further line is a sample.

    The file is locked until `close`, so that two processes can't write to it.

    Args:
        path: the file; None writes nothing.
        header: what is evaluated and how. A file that was started with another header is refused.

    Raises:
        ConfigError: the file belongs to another evaluation (the message names the field that differs), or another
            process writes it.
        DataError: the file is damaged before its last line; names the line and the field.
        RecordError: the file can't be written.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self._file: IO[bytes] | None = None
        self._held = ExitStack()
        self.samples: dict[int, dict[str, Any]] = {}
        self.passed = 0
        if path is None:
            return
        self._path = path
        header = json.loads(json.dumps(header, default=str))
        self._held.enter_context(
            locked(path.with_name(f".{path.name}.lock"), what=f"the journal {path}", mend="give another --output")
        )
        try:
            is_new = not path.exists()
            if not is_new:
                self._read(path, header)
            self._file = self._held.enter_context(path.open("ab", buffering=0))
            if is_new or not path.stat().st_size:
                self._write(header)
        except OSError as error:
            self._held.close()
            raise RecordError(f"{path}: can't be read and written ({error.strerror})") from error
        except BaseException:
            self._held.close()
            raise

    def add(self, number: int, sample: Mapping[str, Any]) -> None:
        """Write a sample.

        Raises:
            RecordError: the sample can't be written; what was written before is intact.
        """
        self._take(number, dict(sample))
        if self._file:
            self._write({"number": number, **sample})

    def _take(self, number: int, sample: dict[str, Any]) -> None:
        self.samples[number] = sample
        self.passed += bool(sample["passed"])

    def close(self) -> None:
        """Close the file and release the lock."""
        self._held.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        assert self._file is not None
        data = memoryview(json.dumps(record).encode() + b"\n")
        size = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.truncate(size)  # so that the next line does not go on where this one was cut
            raise RecordError(
                f"{self._path}: can't be written ({error.strerror}); free disk space, and the same command continues "
                "from there"
            ) from error

    def _read(self, path: Path, header: Mapping[str, Any]) -> None:
        """Read the existing samples; an incomplete last line, as after a kill, is removed from the file."""
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(path, len(whole))
        for line, text in enumerate(whole.split(b"\n")[:-1], start=1):
            record = json_object(text, path, line)
            if line > 1:
                number = record.pop("number", None)
                if type(number) is not int or number < 0 or number in self.samples:
                    what = "occurs twice" if number in self.samples else "is not a whole number of at least 0"
                    raise DataError(f"{what}; {_MEND}", path=path, line=line, field="number")
                check_sample(record, path, line)
                self._take(number, record)
            elif different := differing(record, header):
                raise ConfigError(
                    f"{path} holds samples of another evaluation ({'; '.join(different)}): give another --output or "
                    "the same options, or delete the file"
                )


_MEND = "delete the line, and the same command generates its sample again"


def check_sample(sample: Any, path: str | Path, line: int | None = None, where: str = "") -> None:
    """Check that a sample has the fields that figures and comparisons need.

    Args:
        sample: the sample as it was read.
        path: the file, for the message.
        line: 1-based line, for the message.
        where: which sample, for the message.

    Raises:
        DataError: a field is missing or has a wrong value; names file, line and field.
    """
    mend = _MEND if line else "create the file again with gtpo eval"
    if not isinstance(sample, dict):
        raise DataError(f"{where}not a sample of gtpo eval; {mend}", path=path, line=line)
    for name, kind in _SAMPLE.items():
        value = sample.get(name)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            what = "missing" if name not in sample else f"{ascii(value)[:80]} is not a valid value"
            raise DataError(f"{where}{what}; {mend}", path=path, line=line, field=name)
    for turn in sample["turns"]:
        if not isinstance(turn, dict) or not isinstance(turn.get("statuses"), list):
            raise DataError(f"{where}a turn has no statuses; {mend}", path=path, line=line, field="turns")


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
