"""Problems, and where they come from: one function a source.

The one source so far is a JSON Lines file, `load_problems`. Another source (a data set of the Hub, a problem
generator) is another function that returns `list[Problem]`; nothing downstream can tell them apart.

A file is read as a stream, line by line, and checked as it is read: a fault is found before any model loads.
Up to `MAX_FAULTS` faults are reported together, so that a file takes one or two rounds of mending and not one
a line.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gtpo.errors import ConfigError, DataError

MAX_FAULTS = 5


@dataclass(frozen=True)
class Problem:
    """One problem, with what is needed to check an answer to it.

    Attributes:
        id: unique within its source.
        question: what the model is asked; never blank.
        answer: the gold answer as text; what the text means depends on the domain.
        domain: which verifier checks it, such as "math".
        extras: the row's other fields, as they were.
    """

    id: str
    question: str
    answer: str
    domain: str = "math"
    extras: Mapping[str, Any] = field(default_factory=dict, hash=False)


def load_problems(
    path: str | Path, *, limit: int | None = None, require: Sequence[str] = ("question", "answer")
) -> list[Problem]:
    """The problems of a JSON Lines file (UTF-8, one object a line), in its order.

    A row has `question` (text) and `answer` (text or a number); `id` (default: `<file stem>/<0-based line>`)
    and `domain` (default: "math") are optional, and every other field becomes an entry of `extras`. Blank
    lines are passed over.

    Args:
        path: the file.
        limit: read the first `limit` problems only; later lines are not even checked. None reads all.
        require: fields that each row must have and that must not be blank. Without "answer" in it, a row that
            has no answer gets the answer "".

    Raises:
        DataError: the file is missing, unreadable or empty, or a line is not UTF-8, not JSON, not an object,
            lacks a field, has a blank or ill-typed one, or repeats an id. The message names file, line and
            field.
        ConfigError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; give 1 or more, or None for all problems")
    path = Path(path)
    problems: list[Problem] = []
    faults: list[DataError] = []
    line_of_id: dict[str, int] = {}
    for number, raw in _numbered_lines(path):
        try:
            problem = _problem(_json_object(raw, path, number), path, number, require)
            if problem.id in line_of_id:
                message = f"{problem.id!r} is the id of line {line_of_id[problem.id]} too; ids must be unique"
                raise DataError(message, path=path, line=number, field="id")
        except DataError as fault:
            faults.append(fault)
            if len(faults) == MAX_FAULTS:
                break
            continue
        line_of_id[problem.id] = number
        problems.append(problem)
        if limit is not None and len(problems) + len(faults) >= limit:
            break
    if len(faults) == 1:
        raise faults[0]
    if faults:
        found = f"the first {MAX_FAULTS} faults" if len(faults) == MAX_FAULTS else f"{len(faults)} faults"
        raise DataError(f"{found}:\n  " + "\n  ".join(map(str, faults)), path=path)
    if not problems:
        raise DataError("holds no problem; write one JSON object a line, with question and answer", path=path)
    return problems


def sample(problems: Sequence[Problem], n: int, seed: int) -> list[Problem]:
    """`n` problems drawn without replacement, in their original order.

    The draw depends on `seed` and the ids alone, not on the order of the problems, on Python's hash seed or
    on a generator's state; the sample of n problems is contained in that of n + 1.

    Raises:
        ConfigError: there are fewer than `n` problems, or `n` is negative.
    """
    if not 0 <= n <= len(problems):
        raise ConfigError(f"can't draw {n} of {len(problems)} problems; ask for 0 to {len(problems)}")
    keys = [hashlib.sha256(f"{seed}\0{problem.id}".encode()).digest() for problem in problems]
    drawn = sorted(range(len(problems)), key=keys.__getitem__)[:n]
    return [problems[i] for i in sorted(drawn)]


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
        message = f"broken JSON at column {error.colno}: {error.msg}; write one JSON object a line"
        raise DataError(message, path=path, line=number) from None
    except RecursionError:
        raise DataError("JSON nested too deeply; flatten it", path=path, line=number) from None
    if not isinstance(row, dict):
        message = f"a JSON {_json_type(row)}, not an object; write {{...}} with question and answer"
        raise DataError(message, path=path, line=number)
    return row


def _problem(row: dict[str, Any], path: Path, number: int, require: Sequence[str]) -> Problem:
    def fault(name: str, message: str) -> DataError:
        return DataError(message, path=path, line=number, field=name)

    for name in require:
        if row.get(name) is None:
            have = ", ".join(sorted(row)) or "none"
            raise fault(name, f"missing or null; add it or rename another field (the row has: {have})")
        if isinstance(row[name], str) and not row[name].strip():
            raise fault(name, "blank; fill it in or remove the row")
    question, domain = row.get("question", ""), row.get("domain", "math")
    if not isinstance(question, str):
        raise fault("question", f"a JSON {_json_type(question)}; give text")
    if not isinstance(domain, str) or not domain.strip():
        raise fault("domain", "not a name; give text such as 'math', or leave it out")
    answer = row.get("answer", "")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise fault("answer", f"a JSON {_json_type(answer)}; give text or a number")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise fault("answer", f"{answer} is not a finite number; give text or a number")
    name = row.get("id", f"{path.stem}/{number - 1}")
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise fault("id", f"a JSON {_json_type(name)}; give text or a whole number, or leave it out")
    extras = {k: v for k, v in row.items() if k not in ("id", "question", "answer", "domain")}
    return Problem(str(name), question, str(answer), domain, extras)


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
