"""Problems, and how rows become problems. Where the rows come from is the business of `gtpo.tasks.sources`.

Rows are read as a stream and checked as they are read: a fault is found before any model loads. Up to `MAX_FAULTS`
faults are reported together, so that a file takes one or two rounds of mending and not one a line.
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
    """One problem, with what is needed to check an answer to it.

    Attributes:
        id: unique within its source.
        question: what the model is asked; never blank. Of a problem with `messages`, the last of them.
        answer: the gold answer as text; what the text means depends on the verifier.
        domain: math, commonsense, code, or a name of the user's own. Decides on verifier and instruction, unless the
            row says it itself (`gtpo.tasks.answer_types`).
        extras: the row's other fields, as they were.
        messages: a conversation that ends with the user, in place of a single question.
    """

    id: str
    question: str
    answer: str
    domain: str = "math"
    extras: Mapping[str, Any] = field(default_factory=dict, hash=False)
    messages: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)

    @property
    def golds(self) -> list[str]:
        """The gold answer and, where the row has `aliases`, those; each once."""
        aliases = self.extras.get("aliases")
        return list(dict.fromkeys([self.answer, *(map(str, aliases) if isinstance(aliases, list | tuple) else ())]))

    @property
    def fields(self) -> dict[str, Any]:
        """Its `id`, `question`, `answer` and `domain`."""
        return {name: getattr(self, name) for name in ("id", "question", "answer", "domain")}

    @property
    def columns(self) -> dict[str, Any]:
        """The problem by the names of its fields, those of `extras` included, as environments are reset with it."""
        return {**self.extras, **self.fields}

    def prompt(self, system_prompt: str | None) -> list[dict[str, Any]]:
        """What the model is given, as chat messages. A system message of the problem's own stays."""
        messages = [dict(message) for message in self.messages] or [{"role": "user", "content": self.question}]
        if system_prompt and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system_prompt})
        return messages


def load_problems(
    path: str | Path, *, limit: int | None = None, require: Sequence[str] = ("question", "answer")
) -> list[Problem]:
    """The problems of a JSON Lines file (UTF-8, one object per line), in its order.

    A row has `question` (text), or in its place `messages` (a conversation that ends with the user), and `answer`
    (text, a number, or a list of aliases), or is a row of a published data set (`gtpo.tasks.row_forms`); `id` (default:
    `<file stem>/<0-based line>`) and `domain` (default: "math") are optional, and every other field becomes an entry of
    `extras`. Blank lines are passed over.

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
    """The problems of numbered rows.

    Args:
        rows: numbers, and rows or what is wrong with them.
        source: where they come from, for messages; ids are made of its last part.
        limit: see `load_problems`.
        require: see `load_problems`.
        columns: which column holds which field, where the rows do not say it; see `gtpo.tasks.row_forms`.
        domain: of rows that do not say it; None: that of their form, else math.

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
                message = f"{problem.id!r} is the id of line {line_of_id[problem.id]} too; ids must be unique"
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
        found = f"the first {MAX_FAULTS} faults" if len(faults) == MAX_FAULTS else f"{len(faults)} faults"
        raise DataError(f"{found}:\n  " + "\n  ".join(map(str, faults)), path=source)
    if not problems:
        raise DataError("holds no problem; write one JSON object per line, with question and answer", path=source)
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
    keys = [draw_key(problem, seed) for problem in problems]
    drawn = sorted(range(len(problems)), key=keys.__getitem__)[:n]
    return [problems[i] for i in sorted(drawn)]


def draw_key(problem: Problem, seed: int) -> bytes:
    """Sorting by it shuffles problems, in a way that depends on `seed` and the ids alone."""
    return hashlib.sha256(f"{seed}\0{problem.id}".encode()).digest()


def no_row_verifier(named: object) -> str:
    """What is wrong with a row's field `verifier`, and how to mend it."""
    return (
        f"there is no verifier {named!r} for a row to name; there are: {', '.join(VERIFIERS)}. Name one of these or "
        "remove the field; a function of your own is given on the command line, as --verifier MODULE:FUNCTION"
    )


def problem_of_row(
    row: dict[str, Any], source: str | Path, number: int, require: Sequence[str] = (), domain: str | None = None
) -> Problem:
    """The problem of a row of ours; its fields are checked.

    Args:
        row: the row.
        source, number: where it is from, for messages and for its id.
        require: see `load_problems`.
        domain: if the row does not say it; None: math, and a list of answers is checked by `qa`.

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
        raise fault("question", f"a JSON {json_type(question)}; give text")
    if not isinstance(domain, str) or not domain.strip():
        raise fault("domain", "not a name; give text such as 'math', or leave it out")
    answer = "" if row.get("answer") is None else row["answer"]
    if isinstance(answer, list | tuple):
        answer = _aliases(row, answer, fault)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise fault("answer", f"a JSON {json_type(answer)}; give text, a number or a list of aliases")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise fault("answer", f"{answer} is not a finite number; give text or a number")
    name = row.get("id", f"{Path(source).stem}/{number - 1}")
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise fault("id", f"a JSON {json_type(name)}; give text or a whole number, or leave it out")
    if (named := row.get("verifier")) and named not in VERIFIERS:
        raise fault("verifier", f"id {name!r}: {no_row_verifier(named)}")
    extras = {k: v for k, v in row.items() if k not in ("id", "question", "answer", "domain")}
    return Problem(str(name), question, str(answer), domain, extras, messages)


def _aliases(row: dict[str, Any], answers: Sequence[Any], fault: Callable[[str, str], DataError]) -> str:
    """The first of several answers; the row keeps all of them."""
    if not answers or not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in answers):
        raise fault("answer", "not a list of answers; give texts or numbers, at least one")
    row["aliases"] = [str(one) for one in answers]
    return str(answers[0])


def _conversation(messages: Any, fault: Callable[[str, str], DataError]) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(messages, list) or not messages:
        raise fault("messages", f"a JSON {json_type(messages)}; give a list of messages")
    for message in messages:
        if not (isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))):
            raise fault("messages", "a message must be an object with 'role' and 'content', both text")
    if messages[-1]["role"] != "user":
        raise fault("messages", f"ends with a message of {messages[-1]['role']!r}; it must end with the user's")
    return tuple(messages)
