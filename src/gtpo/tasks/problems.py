"""Problems, and how rows are converted to problems. `gtpo.tasks.sources` reads the rows from files, the Hub and so on.

Rows are read as a stream and checked as they are read, so errors are found before any model loads. Up to `MAX_FAULTS`
errors are reported together, so that a file does not have to be fixed one line at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gtpo._jsonl import json_type, numbered_rows
from gtpo.errors import ConfigError, DataError
from gtpo.tasks.row_forms import FIELDS, Columns, RowReader

MAX_FAULTS = 5
VERIFIERS = ("math", "choice", "qa", "code", "reasoning_gym")
"""The verifiers that a row may name, see `gtpo.tasks.verifiers`."""


@dataclass(frozen=True)
class Problem:
    """One problem, with the data needed to check an answer to it.

    Attributes:
        id: unique within its source.
        question: the question for the model; never blank. For a problem with `messages`, the text of the last message.
        answer: the gold answer as text; what the text means depends on the verifier.
        domain: math, commonsense, code, or a name of your own. It determines the verifier and the instruction, unless
            the row names a verifier (`gtpo.tasks.answer_types`).
        extras: the row's other fields, unchanged.
        messages: a conversation whose last message is the user's, in place of a single question.
    """

    id: str
    question: str
    answer: str
    domain: str = "math"
    extras: Mapping[str, Any] = field(default_factory=dict, hash=False)
    messages: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)

    @property
    def golds(self) -> list[str]:
        """The gold answer and the row's `aliases`, if any, without duplicates."""
        aliases = self.extras.get("aliases")
        return list(dict.fromkeys([self.answer, *(map(str, aliases) if isinstance(aliases, list | tuple) else ())]))

    @property
    def fields(self) -> dict[str, Any]:
        """The problem's `id`, `question`, `answer` and `domain`."""
        return {name: getattr(self, name) for name in ("id", "question", "answer", "domain")}

    @property
    def columns(self) -> dict[str, Any]:
        """All fields by name, including those of `extras`; environments are reset with these."""
        return {**self.extras, **self.fields}

    def prompt(self, system_prompt: str | None) -> list[dict[str, Any]]:
        """Returns the chat messages for the model. `system_prompt` does not replace a system message of the problem."""
        messages = [dict(message) for message in self.messages] or [{"role": "user", "content": self.question}]
        if system_prompt and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system_prompt})
        return messages


def load_problems(
    path: str | Path, *, limit: int | None = None, require: Sequence[str] = ("question", "answer")
) -> list[Problem]:
    """Loads the problems of a JSON Lines file (UTF-8, one object per line), in the order of its lines.

    A row needs `question` (text), or in its place `messages` (a conversation whose last message is the user's), and
    `answer` (text, a number, or a list of aliases). Rows of published data sets are read too (`gtpo.tasks.row_forms`).
    `id` (default: `<file stem>/<0-based line>`) and `domain` (default: "math") are optional. Every other field becomes
    an entry of `extras`. Blank lines are skipped.

    Args:
        path: the file.
        limit: read only the first `limit` problems; later lines are not checked. None reads all.
        require: fields that each row must have and that must not be blank. If "answer" is not among them, a row
            without an answer gets the answer "".

    Raises:
        DataError: the file is missing, unreadable or empty, or a line is not UTF-8, not JSON, not an object,
            lacks a field, has a field that is blank or of the wrong type, or repeats an id. The message names file,
            line and field.
        ConfigError: `limit` is below 1.
    """
    path = Path(path)
    return problems_of_rows(numbered_rows(path), path, limit=limit, require=require)


def problems_of_rows(
    rows: Iterable[tuple[int, dict[str, Any] | DataError]],
    source: str | Path,
    *,
    limit: int | None = None,
    require: Sequence[str] = ("question", "answer"),
    columns: Columns = None,
    domain: str | None = None,
) -> list[Problem]:
    """Converts numbered rows to problems.

    Args:
        rows: pairs of a line number and a row, or the error found in that line.
        source: where the rows come from, for error messages; default ids start with its last part.
        limit: see `load_problems`.
        require: see `load_problems`.
        columns: which column holds which field, if the rows' own columns do not tell; see `gtpo.tasks.row_forms`.
        domain: domain of rows without one; None: the domain of their form, or math if it has none.

    Raises:
        DataError, ConfigError: see `load_problems`.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; give 1 or more, or None for all problems")
    problems: list[Problem] = []
    faults: list[DataError] = []
    line_of_id: dict[str, int] = {}
    reader = RowReader(columns)
    for number, raw in rows:
        try:
            if isinstance(raw, DataError):
                raise raw
            if (row := reader.read(raw)) is None:
                continue
            problem = problem_of_row(row, source, number, require, domain or reader.domain)
            if problem.id in line_of_id:
                message = f"{problem.id!r} is also the id of line {line_of_id[problem.id]}; ids must be unique"
                raise DataError(message, path=source, line=number, field="id")
        except DataError as fault:
            faults.append(fault if fault.path else fault.at(source, number))
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
        found = f"the first {MAX_FAULTS} errors" if len(faults) == MAX_FAULTS else f"{len(faults)} errors"
        raise DataError(f"{found}:\n  " + "\n  ".join(map(str, faults)), path=source)
    if not problems:
        raise DataError("contains no problems; write one JSON object per line, with question and answer", path=source)
    return problems


def sample(problems: Sequence[Problem], n: int, seed: int) -> list[Problem]:
    """Draws `n` problems without replacement and returns them in their original order.

    The draw depends only on `seed` and the ids, not on the order of the problems, on Python's hash seed or
    on a generator's state. The sample of n problems is contained in the sample of n + 1.

    Raises:
        ConfigError: there are fewer than `n` problems, or `n` is negative.
    """
    if not 0 <= n <= len(problems):
        raise ConfigError(f"can't draw {n} of {len(problems)} problems; ask for 0 to {len(problems)}")
    keys = [draw_key(problem, seed) for problem in problems]
    drawn = sorted(range(len(problems)), key=keys.__getitem__)[:n]
    return [problems[i] for i in sorted(drawn)]


def draw_key(problem: Problem, seed: int) -> bytes:
    """A sort key that shuffles problems; the order depends only on `seed` and the ids."""
    return hashlib.sha256(f"{seed}\0{problem.id}".encode()).digest()


def no_row_verifier(named: object) -> str:
    """The error message for a row whose field `verifier` is not one of `VERIFIERS`."""
    return (
        f"a row cannot name the verifier {named!r}; available: {', '.join(VERIFIERS)}. Name one of these or remove the "
        "field; to use your own function, pass --verifier MODULE:FUNCTION on the command line"
    )


def problem_of_row(
    row: dict[str, Any], source: str | Path, number: int, require: Sequence[str] = (), domain: str | None = None
) -> Problem:
    """Converts a row in our format to a problem and checks its fields.

    Args:
        row: the row.
        source, number: where the row comes from, for error messages and its default id.
        require: see `load_problems`.
        domain: domain if the row has none; None: math, and an answer that is a list is checked by `qa`.

    Raises:
        DataError: see `load_problems`.
    """
    if domain is None and isinstance(row.get("answer"), list | tuple) and "domain" not in row:
        row = {"verifier": "qa", **row}
    row = {"domain": domain or "math", **row}

    def fault(name: str, message: str) -> DataError:
        return DataError(message, path=source, line=number, field=name)

    messages: tuple[Mapping[str, Any], ...] = ()
    if row.get("question") is None and row.get("messages") is not None:
        messages = _conversation(row.pop("messages"), fault)
        row["question"] = messages[-1]["content"]
    for name in require:
        if row.get(name) is None:
            have = ", ".join(sorted(set(row) - {"domain"})) or "none"
            hint = f"; name its column, with --columns {name}=COLUMN, or add it" if name in FIELDS else "; add it"
            raise fault(name, f"missing or null (the row has: {have}){hint}")
        if isinstance(row[name], str) and not row[name].strip() and not (name == "answer" and row.get("no_answer")):
            raise fault(name, "blank; fill it in or remove the row")
    question, domain = row.get("question", ""), row["domain"]
    if not isinstance(question, str):
        raise fault("question", f"is a JSON {json_type(question)}; give text")
    if not isinstance(domain, str) or not domain.strip():
        raise fault("domain", "is not a name; give text such as 'math', or leave it out")
    answer = "" if row.get("answer") is None else row["answer"]
    if isinstance(answer, list | tuple):
        answer = _aliases(row, answer, fault)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise fault("answer", f"is a JSON {json_type(answer)}; give text, a number or a list of aliases")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise fault("answer", f"{answer} is not a finite number; give text or a number")
    name = row.get("id", f"{Path(source).stem}/{number - 1}")
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise fault("id", f"is a JSON {json_type(name)}; give text or a whole number, or leave it out")
    if (named := row.get("verifier")) and named not in VERIFIERS:
        raise fault("verifier", f"id {name!r}: {no_row_verifier(named)}")
    extras = {k: v for k, v in row.items() if k not in ("id", "question", "answer", "domain")}
    return Problem(str(name), question, str(answer), domain, extras, messages)


def _aliases(row: dict[str, Any], answers: Sequence[Any], fault: Callable[[str, str], DataError]) -> str:
    """Returns the first of several answers; all of them are stored in the row's `aliases`."""
    if not answers or not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in answers):
        raise fault("answer", "is not a list of answers; give at least one text or number")
    row["aliases"] = [str(one) for one in answers]
    return str(answers[0])


def _conversation(messages: Any, fault: Callable[[str, str], DataError]) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(messages, list) or not messages:
        raise fault("messages", f"is a JSON {json_type(messages)}; give a list with at least one message")
    for message in messages:
        if not (isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))):
            raise fault("messages", "each message must be an object with 'role' and 'content', both text")
    if messages[-1]["role"] != "user":
        raise fault("messages", f"the last message has the role {messages[-1]['role']!r}; it must be the user's")
    return tuple(messages)
