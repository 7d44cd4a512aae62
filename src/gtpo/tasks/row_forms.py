r"""Reads rows of published data sets: recognises the form of a row and converts it to our format.

`FORMS` lists the forms that are recognised by their columns and values. An example is `openai/gsm8k`: `question`, and
an `answer` that is a worked solution with `#### 18` at its end. Any other row is read by the names of its columns: the
question is `question`, `problem`, `prompt` (text or chat messages) or `messages`; the answer is `answer`,
`final_answer`, `expected_answer`, `ground_truth` or `target`, or else the last `\boxed{}` of `solution` or what follows
`####` at its end. A row with two of these whose values differ is refused, with its columns and what to do.

`columns` is for rows that are not recognised or are ambiguous. It is a mapping from our fields (`FIELDS`) to columns,
where `reward_model.ground_truth` stands for a nested value; or a function that takes a row and returns a row in our
format, or None to leave the row out.

The first row of a source determines its form; a later row of another form is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from gtpo._own_code import imported, own_code
from gtpo.errors import ConfigError, DataError
from gtpo.tasks import benchmark_rows
from gtpo.tasks.benchmark_rows import RawRow, Row

Columns = Mapping[str, str] | Callable[[Mapping[str, Any]], Mapping[str, Any] | None] | None
"""Which column holds which field, or a function that converts a row to our format; None: recognise the form."""

FIELDS = ("id", "question", "messages", "answer", "solution")
"""Fields of a problem for which `columns` can name a column."""

_QUESTIONS = ("question", "problem", "prompt")
_ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth", "target")
_NO_ANSWER = (
    "its solution has no \\boxed{} and no #### ANSWER at its end; if a column holds the answer itself, pass "
    "--columns answer=COLUMN"
)
_DOMAINS = ("math", "commonsense", "code")
_FINAL = re.compile(r"####\s*([^\n]+?)\s*\Z")
_OLD_BOX = re.compile(r"\\boxed\s+([^\s${}\\]+)")
_OTHER_INSTRUCTIONS = (
    re.compile(
        r"\ASolve the following math problem step by step\. The last line of your response should be of the form "
        r"Answer: .{1,40}? where \$Answer is the answer to the problem\.\s+(?P<question>.+?)\s+"
        r'Remember to put your answer on its own line after "Answer:"\.\s*\Z',
        re.DOTALL,
    ),
    re.compile(
        r"\A(?P<question>.+?)\s+Let's think step by step and output the final answer after \"####\"\.\s*\Z", re.DOTALL
    ),
)
"""Sentences of DAPO's and verl's prompts that ask for the answer in a place where the verifier does not look."""


@dataclass(frozen=True)
class RowForm:
    """A form of rows.

    Attributes:
        name: a data set with this form.
        columns: columns by which the form is recognised; a row must have all. `read` converts their values.
        read: converts a raw row to our format; raises DataError with the field if a value can't be used.
        when: a further condition on the row.
        domain: domain of the problems; None for mathematics.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[RawRow], Row]
    when: Callable[[RawRow], bool] = lambda raw: True
    domain: str | None = None

    def fits(self, raw: RawRow) -> bool:
        """Whether a row has this form."""
        return all(raw.get(name) is not None for name in self.columns) and self.when(raw)

    def row(self, raw: RawRow) -> Row:
        """Converts a row to our format; columns that the form does not name are kept."""
        return {**_rest(raw, self.columns), **self.read(raw)}


def _ends_in_mark(raw: RawRow) -> bool:
    return isinstance(raw["answer"], str) and bool(_FINAL.search(raw["answer"].rstrip()))


def _mmlu(raw: RawRow) -> Row:
    texts, place = [str(text) for text in raw["choices"]], raw["answer"]
    options = [f"({letter}) {text}" for letter, text in zip(ascii_uppercase, texts, strict=False)]
    question = "\n".join([str(raw["question"]).strip(), *options])
    answer = {"answer": ascii_uppercase[place], "answer_text": texts[place]}
    return {"question": question, **answer, "choices": texts, "verifier": "choice"}


def _is_place(raw: RawRow) -> bool:
    choices, place = raw["choices"], raw["answer"]
    listed = isinstance(choices, list | tuple) and len(choices) <= len(ascii_uppercase)
    return listed and type(place) is int and 0 <= place < len(choices)


def _with_aliases(raw: RawRow) -> Row:
    answer: Any = raw["answer"]
    others = raw.get("answer_aliases") or ()
    if isinstance(answer, Mapping):
        answer, others = answer.get("value"), answer.get("aliases") or ()
    names = [str(name) for name in (answer, *others) if name is not None and str(name).strip()]
    return {"question": raw["question"], "answer": list(dict.fromkeys(names)), "verifier": "qa"}


def _flashrag(raw: RawRow) -> Row:
    row = benchmark_rows.flashrag({**raw, "id": raw.get("id") or "none"})
    return row if raw.get("id") else {name: value for name, value in row.items() if name != "id"}


def _verl(raw: RawRow) -> Row:
    gold = raw["reward_model"]["ground_truth"]
    if isinstance(gold, Mapping) and isinstance(gold.get("target"), list | tuple):
        gold = list(gold["target"])
    return {**_asked(raw["prompt"]), "answer": gold}


def _mbpp(raw: RawRow) -> Row:
    """Both configurations: `full`, and `sanitized`, whose question is `prompt` and whose imports are `test_imports`."""
    setup = raw.get("test_setup_code") or "\n".join(raw.get("test_imports") or ())
    text = raw["text"] if raw.get("text") is not None else raw.get("prompt")
    return benchmark_rows.mbpp({**raw, "text": text, "test_setup_code": setup})


def _is_yes_or_no(raw: RawRow) -> bool:
    return type(raw["answer"]) is bool


def _is_named(raw: RawRow) -> bool:
    return isinstance(raw["answer"], Mapping) and "aliases" in raw["answer"]


def _has_text(raw: RawRow) -> bool:
    return raw.get("text") is not None or raw.get("prompt") is not None


def _has_truth(raw: RawRow) -> bool:
    return isinstance(raw["reward_model"], Mapping) and raw["reward_model"].get("ground_truth") is not None


_QUESTION = ("question", "answer")
_OPTIONS = ("choices", "answerKey")
_PROGRAM = ("prompt", "test", "entry_point", "canonical_solution")
_TESTS = ("question_content", "public_test_cases", "private_test_cases")
_SEVERAL = ("question", "final_answer", "is_multiple_answer")
FORMS = (
    RowForm("RUC-NLPIR/FlashRAG_datasets", ("question", "golden_answers"), _flashrag, domain="commonsense"),
    RowForm("tau/commonsense_qa", ("question", *_OPTIONS), benchmark_rows.commonsenseqa, domain="commonsense"),
    RowForm("allenai/openbookqa", ("question_stem", *_OPTIONS), benchmark_rows.openbookqa, domain="commonsense"),
    RowForm("cais/mmlu", (*_QUESTION, "choices"), _mmlu, _is_place, domain="commonsense"),
    RowForm(
        "ChilleD/StrategyQA", (*_QUESTION, "facts"), benchmark_rows.strategyqa, _is_yes_or_no, domain="commonsense"
    ),
    RowForm("hotpotqa/hotpot_qa", (*_QUESTION, "supporting_facts"), _with_aliases, domain="commonsense"),
    RowForm("dgslibisey/MuSiQue", (*_QUESTION, "answer_aliases"), _with_aliases, domain="commonsense"),
    RowForm("mandarjoshi/trivia_qa", _QUESTION, _with_aliases, _is_named, domain="commonsense"),
    RowForm("openai/openai_humaneval", _PROGRAM, benchmark_rows.humaneval, domain="code"),
    RowForm("google-research-datasets/mbpp", ("test_list", "code"), _mbpp, _has_text, domain="code"),
    RowForm("livecodebench/code_generation_lite", _TESTS, benchmark_rows.livecodebench, domain="code"),
    RowForm("Hothan/OlympiadBench", _SEVERAL, benchmark_rows.olympiadbench),
    RowForm("ChilleD/SVAMP", ("Body", "Question", "Answer"), benchmark_rows.svamp),
    RowForm("reasoning-machines/gsm-hard", ("input", "code", "target"), benchmark_rows.gsm_hard),
    RowForm("openai/gsm8k", _QUESTION, benchmark_rows.gsm8k, _ends_in_mark),
    RowForm("BytedTsinghua-SIA/DAPO-Math-17k", ("prompt", "reward_model"), _verl, _has_truth),
)
"""The forms that are recognised by columns and values; the first that fits is used."""


def parse_columns(text: str | None) -> Columns:
    """Parses the option `--columns`: `question=COLUMN,answer=COLUMN`, `MODULE:FUNCTION` or `./FILE.py:FUNCTION`.

    Raises:
        ConfigError: the text has none of these formats, names an unknown field, or the function can't be imported.
    """
    if text is None:
        return None
    if "=" not in text:
        if ":" not in text:
            raise ConfigError(
                f"--columns {text!r}: give pairs, question=COLUMN,answer=COLUMN, or a function, ./FILE.py:NAME"
            )
        return imported(text, "columns")
    pairs = [pair.partition("=") for pair in text.split(",")]
    return check_columns({ours.strip(): theirs.strip() for ours, _, theirs in pairs})


def check_columns(columns: Columns) -> Columns:
    """Checks columns and returns them.

    Raises:
        ConfigError: they name an unknown field, or a field has no column.
    """
    if columns is None or callable(columns):
        return columns
    if unknown := sorted(set(columns) - set(FIELDS)):
        raise ConfigError(f"columns: unknown field {unknown[0]!r}; known: {', '.join(FIELDS)}")
    if empty := [ours for ours, theirs in columns.items() if not theirs]:
        raise ConfigError(f"columns: no column is given for {empty[0]}; write {empty[0]}=COLUMN")
    return columns


class RowReader:
    """Reads the rows of one source; the first row determines the form of all.

    Args:
        columns: see the module.
    """

    def __init__(self, columns: Columns = None) -> None:
        self._columns = check_columns(columns)
        self._form: RowForm | None = None
        self._roles: dict[str, str] | None = None

    @property
    def domain(self) -> str | None:
        """Domain of rows without one, by their form; None if the form has none."""
        return self._form.domain if self._form else None

    def read(self, raw: Mapping[str, Any]) -> Row | None:
        """Converts a row to our format; returns None if the user's function leaves it out.

        Raises:
            DataError: no form fits or several do, or a value can't be used. The error does not name the row's line.
        """
        if callable(self._columns):
            with own_code("the function of --columns", DataError):
                made = self._columns(dict(raw))
            if made is not None and not isinstance(made, Mapping):
                raise DataError(f"the function of --columns returned a {type(made).__name__}; return a row or None")
            return None if made is None else dict(made)
        form = None if self._columns else _known(raw)
        if form is not self._form and (self._form or self._roles):
            raise DataError(
                f"has the form of {form.name if form else 'no known data set'}, but the rows before it have "
                f"{f'that of {self._form.name}' if self._form else f'their answer in {self._roles_shown}'} (this row "
                f"has: {_seen(raw)}); split them into two sources, or pass --columns question=COLUMN,answer=COLUMN"
            )
        if form:
            self._form = form
            return form.row(raw)
        self._roles = _roles(raw, self._columns or {}, self._roles or {})
        return _by_roles(raw, self._roles)

    def knows(self, raw: RawRow) -> bool:
        """Whether the row has one of `FORMS`."""
        return _known(raw) is not None

    @property
    def _roles_shown(self) -> str:
        return repr((self._roles or {}).get("answer", "no column"))


def _known(raw: RawRow) -> RowForm | None:
    return next((form for form in FORMS if form.fits(raw)), None)


def _roles(raw: RawRow, columns: Mapping[str, str], former: Mapping[str, str]) -> dict[str, str]:
    """Maps our fields to the columns that hold them, by `columns`, by the rows before, or by name.

    Raises:
        DataError: a column named in `columns` is missing, or more than one column may hold a field.
    """
    for theirs in columns.values():
        if _value(raw, theirs) is None and theirs.partition(".")[0] not in raw:
            raise DataError(f"no such column (there are: {_seen(raw)})", field=theirs)
    roles = {**former, **columns}
    if not {"question", "messages"} & set(columns) and "question" not in former:
        asks = [name for name in _QUESTIONS if raw.get(name) is not None]
        roles |= _one_of("question", asks, raw)
    if "answer" not in roles:
        told = [name for name in _ANSWERS if raw.get(name) is not None]
        roles |= _one_of("answer", told, raw)
        if not told and isinstance(raw.get("solution"), str):
            roles["solution"] = "solution"
    return roles


def _one_of(field: str, names: Sequence[str], raw: RawRow) -> dict[str, str]:
    if len({str(raw[name]).strip() for name in names}) > 1:
        raise DataError(
            f"ambiguous: the {field} may be {' or '.join(names)} (the row has: {_seen(raw)}); choose one with "
            f"--columns {field}=COLUMN, or ?{field}=COLUMN after the source",
            field=field,
        )
    return {field: names[0]} if names else {}


def _by_roles(raw: RawRow, roles: Mapping[str, str]) -> Row:
    row = _rest(raw, list(roles.values()))
    given = {ours: value for ours, theirs in roles.items() if (value := _value(raw, theirs)) is not None}
    row |= {name: value for name, value in given.items() if name not in ("question", "answer")}
    if "question" in given:
        row |= _asked(given["question"])
    elif raw.get("messages") is not None:
        row |= {"messages": raw["messages"]}
    if roles.get("question", "question") != "question" and row.get("domain") not in _DOMAINS:
        row.pop("domain", None)  # in rows that are not in our format it has another meaning
    if "answer" in given:
        return {**row, "answer": given["answer"]}
    if "answer" in roles or not isinstance(row.get("solution"), str):
        return row
    final = _final_answer(row["solution"])
    return {**row, "answer": final} if final else {**row, "answer": "", "no_answer": _NO_ANSWER}


def _asked(value: Any) -> Row:
    """The question, or the conversation in its place."""
    if isinstance(value, list | tuple):
        messages = [dict(message) if isinstance(message, Mapping) else message for message in value]
        if len(messages) != 1 or not isinstance(messages[0], dict) or messages[0].get("role") != "user":
            return {"messages": messages}
        value = messages[0].get("content")
    if isinstance(value, str):
        for instruction in _OTHER_INSTRUCTIONS:
            if found := instruction.match(value):
                return {"question": found["question"]}
    return {"question": value}


def _final_answer(solution: str) -> str | None:
    r"""The last `\boxed{}` of a worked solution, or what follows `####` at its end."""
    from gtpo.tasks.verifiers.answers import last_boxed  # verifiers import problems, which import this module

    boxed = last_boxed(_OLD_BOX.sub(r"\\boxed{\1}", solution).replace("\\fbox", "\\boxed"))
    if boxed and boxed.strip():
        return boxed.strip()
    marked = _FINAL.search(solution.rstrip())
    return marked[1] if marked else None


def _rest(raw: RawRow, used: Sequence[str]) -> Row:
    """The other columns, without `messages` (beside a question they answer it) and without an `id` that is None."""
    left = {name: value for name, value in raw.items() if name not in used and name != "messages"}
    if left.get("id", "") is None:
        del left["id"]
    return left


def _value(raw: RawRow, column: str) -> Any:
    """The value of a column or of a nested field such as `reward_model.ground_truth`; None if it does not exist."""
    if column in raw:
        return raw[column]
    value: Any = raw
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _seen(raw: RawRow) -> str:
    return ", ".join(sorted(map(str, raw))) or "none"
