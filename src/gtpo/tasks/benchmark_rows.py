r"""Converts rows of published data sets to the format that `gtpo.tasks.problems` reads: one function per data set.

Each function takes the raw row and returns a new one: `question`, `answer` (text), and what else its verifier needs.
`id` is the data set's own; the caller that loads the rows prefixes it with the benchmark's name, or numbers the rows of
a data set without ids. Columns that a function does not name are dropped. A column that is missing or has another type
raises a `DataError` with the column's name, so a changed data set is noticed.

Programs on input and output (`answer_kind` "io")
-------------------------------------------------
LiveCodeBench's tests are not code but data. `answer` is JSON text, in one of two forms:

a list of `{"input": str, "output": str}`
    The program is run once per test, with `input` on its standard input, and its standard output is compared with
    `output`. LiveCodeBench compares line by line and ignores space around the text and around each line; lines that
    differ as text still count as equal if both consist of numbers that are equal as decimals.
`{"function": name, "tests": [{"input": [...], "output": value}, ...]}`
    The program defines the function, or a class `Solution` with the method: the call is `Solution().name(*input)` if
    there is such a class, else `name(*input)`. Inputs and outputs are JSON values. LiveCodeBench converts a returned
    tuple to a list, then compares with `==`.

A program is `prelude` followed by the candidate; `prelude` holds the imports that LiveCodeBench's own grader adds. All
tests must pass, the public ones are run first; LiveCodeBench allows 6 s per test.
"""

from __future__ import annotations

import base64
import builtins
import io
import json
import pickle
import re
import zlib
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from string import ascii_uppercase
from typing import Any, NoReturn

from gtpo.errors import DataError

RawRow = Mapping[str, Any]
Row = dict[str, Any]

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DOLLAR = re.compile(r"(?<!\\)\$")
_CALL = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_GRADER_MODULES = [
    "string",
    "re",
    "datetime",
    "collections",
    "heapq",
    "bisect",
    "copy",
    "math",
    "random",
    "statistics",
    "itertools",
    "functools",
    "operator",
    "io",
    "sys",
    "json",
    "builtins",
    "typing",
]
LIVECODEBENCH_PRELUDE = "".join(
    [f"from {module} import *\n" for module in _GRADER_MODULES]
    + [f"import {module}\n" for module in _GRADER_MODULES if module not in ("builtins", "typing")]
    + ["sys.setrecursionlimit(50000)\n"]
)
"""The imports that LiveCodeBench's grader puts before a program, in its order (later names hide earlier ones)."""


def column(raw: RawRow, name: str, *types: type, within: str = "") -> Any:
    """Returns the value of a column.

    Args:
        raw: the row, or a mapping inside it.
        name: the column.
        types: the types that the value may have; if none are given, any value but None.
        within: the column whose value `raw` is, if `raw` is not the row itself.

    Raises:
        DataError: the column is missing, null or of another type; `field` is its name.
    """
    field = f"{within}.{name}" if within else name
    value = raw.get(name) if isinstance(raw, Mapping) else None
    if value is None:
        have = ", ".join(map(str, raw)) if isinstance(raw, Mapping) else type(raw).__name__
        _wrong(field, f"missing or null in a row of the data set (it has: {have})")
    if types and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
        _wrong(field, f"a {type(value).__name__}, not a {' or '.join(kind.__name__ for kind in types)}")
    return value


def _wrong(field: str, message: str) -> NoReturn:
    raise DataError(f"{message}; has the data set changed?", field=field)


def _text(raw: RawRow, name: str) -> str:
    value: str = column(raw, name, str)
    return value if value.strip() else _wrong(name, "blank")


def _id(raw: RawRow, name: str) -> str:
    return str(column(raw, name, str, int))


def _plain(value: str | int | float, field: str) -> str:
    """Normalises numbers: 033, 33.0 and "33" become 33, 1,200 becomes 1200. Other text is returned unchanged."""
    text = str(value).strip()
    try:
        number = Decimal(_THOUSANDS.sub("", text))
    except InvalidOperation:
        return text or _wrong(field, "blank")
    if not number.is_finite():
        _wrong(field, f"{text} is not a finite number")
    return str(int(number)) if number == number.to_integral_value() else _THOUSANDS.sub("", text)


def aime24(raw: RawRow) -> Row:
    """AIME 2024, `HuggingFaceH4/aime_2024`: integers with three digits, such as 033."""
    return {
        "id": _id(raw, "id"),
        "question": _text(raw, "problem"),
        "answer": _plain(column(raw, "answer", str, int), "answer"),
    }


aime25 = aime24
"""AIME 2025, `math-ai/aime25`: the same columns."""


def amc23(raw: RawRow) -> Row:
    """AMC 2023, `math-ai/amc23`: numbers, some spelled 27.0."""
    return {
        "id": _id(raw, "id"),
        "question": _text(raw, "question"),
        "answer": _plain(column(raw, "answer", str, int, float), "answer"),
    }


def math500(raw: RawRow) -> Row:
    """MATH-500, `HuggingFaceH4/MATH-500`: `answer` is LaTeX, without a box."""
    return {"id": _id(raw, "unique_id"), "question": _text(raw, "problem"), "answer": _text(raw, "answer").strip()}


def olympiadbench(raw: RawRow) -> Row:
    """OlympiadBench, open text-only questions in English. Several answers are joined by commas, without dollar signs.

    As in the benchmark's own prompt, the question says if there are several answers, and if the unit is to be omitted.
    """
    question = _text(raw, "question").strip()
    if column(raw, "is_multiple_answer", bool):
        question += "\nThere are several answers: give all of them, separated by commas."
    if raw.get("unit"):
        question += "\nLeave the unit out of the answer."
    answers = column(raw, "final_answer", list, tuple)
    answer = ", ".join(_DOLLAR.sub("", str(part)).strip() for part in answers)
    return {"id": _id(raw, "id"), "question": question, "answer": answer or _wrong("final_answer", "empty")}


def gsm8k(raw: RawRow) -> Row:
    """GSM8K, `openai/gsm8k`: the answer follows the last `####` of the solution."""
    solution = _text(raw, "answer")
    _, mark, final = solution.rpartition("####")
    if not mark or not final.strip():
        _wrong("answer", "does not end in '#### NUMBER'")
    answer = _plain(final.strip().lstrip("$"), "answer")
    return {"question": _text(raw, "question"), "answer": answer, "solution": solution}


def svamp(raw: RawRow) -> Row:
    """SVAMP, `ChilleD/SVAMP`: the question is `Body` and `Question`, with a period between them if there is none."""
    body = _text(raw, "Body").strip()
    body += "" if body[-1] in ".!?,;:" else "."
    return {
        "id": _id(raw, "ID"),
        "question": f"{body} {_text(raw, 'Question').strip()}",
        "answer": _plain(column(raw, "Answer", str, int, float), "Answer"),
    }


def gsm_hard(raw: RawRow) -> Row:
    """GSM-Hard, `reasoning-machines/gsm-hard`: `target` is a float, in most rows a whole number."""
    return {"question": _text(raw, "input"), "answer": _plain(column(raw, "target", str, int, float), "target")}


def _choice(raw: RawRow, question: str) -> Row:
    """Writes options as lines `(A) ...` in the data set's order. The letters are ours: some rows use labels 1 to 4."""
    choices = column(raw, "choices", Mapping)
    texts = [str(text) for text in column(choices, "text", list, tuple, within="choices")]
    labels = [str(label) for label in column(choices, "label", list, tuple, within="choices")]
    key = column(raw, "answerKey", str).strip()
    if len(texts) != len(labels) or not 0 < len(texts) <= len(ascii_uppercase):
        _wrong("choices", f"{len(texts)} texts but {len(labels)} labels")
    if key not in labels:
        _wrong("answerKey", f"{key!r} is not one of the labels {', '.join(labels)}; does this split have no answers?")
    options = [f"({letter}) {text}" for letter, text in zip(ascii_uppercase, texts, strict=False)]
    right = labels.index(key)
    return {
        "id": _id(raw, "id"),
        "question": "\n".join([question.strip(), *options]),
        "answer": ascii_uppercase[right],
        "choices": texts,
        "answer_text": texts[right],
        "verifier": "choice",
    }


def commonsenseqa(raw: RawRow) -> Row:
    """CommonsenseQA, `tau/commonsense_qa`: five options."""
    return _choice(raw, _text(raw, "question"))


arc = commonsenseqa
"""ARC, `allenai/ai2_arc`: the same columns, three to five options."""


def openbookqa(raw: RawRow) -> Row:
    """OpenBookQA, `allenai/openbookqa`: four options, without the fact from the book."""
    return _choice(raw, _text(raw, "question_stem"))


def strategyqa(raw: RawRow) -> Row:
    """StrategyQA, `ChilleD/StrategyQA`: a Boolean answer becomes yes or no. `qid` is the id, if the row has one."""
    row: Row = {"id": _id(raw, "qid")} if raw.get("qid") is not None else {}
    return {
        **row,
        "question": _text(raw, "question"),
        "answer": "yes" if column(raw, "answer", bool) else "no",
        "verifier": "choice",
    }


def flashrag(raw: RawRow) -> Row:
    """Question answering in the format of `RUC-NLPIR/FlashRAG_datasets`, without passages."""
    answers = [str(answer) for answer in column(raw, "golden_answers", list, tuple)]
    aliases = list(dict.fromkeys(answer for answer in answers if answer.strip()))
    return {
        "id": _id(raw, "id"),
        "question": _text(raw, "question").strip(),
        "answer": aliases[0] if aliases else _wrong("golden_answers", "empty"),
        "aliases": aliases,
        "verifier": "qa",
    }


def humaneval(raw: RawRow) -> Row:
    """HumanEval, `openai/openai_humaneval`.

    The candidate is a whole program. The part of the prompt before the function (imports, and helpers that some tests
    call) is the `prelude`, so a candidate may omit it.
    """
    prompt, name = _text(raw, "prompt"), _text(raw, "entry_point")
    definitions = list(re.finditer(rf"^def {re.escape(name)}\b", prompt, re.MULTILINE))
    if not definitions:
        _wrong("entry_point", f"{name} is not defined by the prompt")
    prelude = prompt[: definitions[-1].start()].strip()
    return {
        "id": _id(raw, "task_id"),
        "question": "Write this Python function. Give the whole program: the function with its signature, and the "
        f"imports and helpers that it needs.\n\n```python\n{prompt.strip()}\n```",
        "answer": f"{_text(raw, 'test').strip()}\n\ncheck({name})\n",
        "answer_kind": "tests",
        "entry_point": name,
        "prelude": f"{prelude}\n" if prelude else "",
        "reference": prompt + _text(raw, "canonical_solution"),
    }


def mbpp(raw: RawRow) -> Row:
    """MBPP, `google-research-datasets/mbpp`, full: the tests are part of the question, as in the benchmark's prompt.

    The setup code of the tests runs after the candidate and before the tests, as it creates objects of the candidate's
    classes.
    """
    text = _text(raw, "text").strip()
    tests = [str(test).replace("\r\n", "\n") for test in column(raw, "test_list", list, tuple)]
    setup = column(raw, "test_setup_code", str).replace("\r\n", "\n").rstrip()
    code = _text(raw, "code").replace("\r\n", "\n")
    if not tests:
        _wrong("test_list", "empty")
    return {
        "id": _id(raw, "task_id"),
        "question": f"{text}\nYour code should pass these tests:\n\n" + "\n".join(tests),
        "answer": "".join(f"{part}\n" for part in ([setup] if setup else []) + tests),
        "answer_kind": "tests",
        "entry_point": _entry_point(code, tests[0]),
        "prelude": "",
        "reference": code,
    }


def _entry_point(code: str, test: str) -> str:
    """The first function of `code` that the test calls; else the first called name that is not built in; else ""."""
    called = [name for name in _CALL.findall(test) if not hasattr(builtins, name)]
    defined = [name for name in called if re.search(rf"^def\s+{name}\b", code, re.MULTILINE)]
    return next(iter(defined or called), "")


def livecodebench(raw: RawRow) -> Row:
    """LiveCodeBench, code generation: tests as data, in the format that the module's docstring describes."""
    question, starter = _text(raw, "question_content").strip(), column(raw, "starter_code", str).strip()
    public = _json(column(raw, "public_test_cases", str), "public_test_cases")
    tests = _tests(public, "public_test_cases")
    tests += _tests(private_tests(column(raw, "private_test_cases", str)), "private_test_cases")
    if not tests:
        _wrong("private_test_cases", "contains no tests")
    metadata = _json(column(raw, "metadata", str), "metadata")
    name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    row: Row = {"id": _id(raw, "question_id"), "answer_kind": "io", "prelude": LIVECODEBENCH_PRELUDE}
    if name is None:
        question += "\n\nThe program reads from standard input and writes to standard output."
        return {**row, "question": question, "answer": json.dumps(tests)}
    question += f"\n\nComplete this code:\n```python\n{starter}\n```"
    calls = {"function": name, "tests": [_call(test) for test in tests]}
    return {**row, "question": question, "answer": json.dumps(calls), "entry_point": name}


def private_tests(packed: str) -> Any:
    """LiveCodeBench's private tests: JSON text, or base64 of zlib of a pickle of JSON text.

    The pickle may contain plain values only: one that refers to a class or a function is refused without loading it.

    Raises:
        DataError: the text has neither format.
    """
    field = "private_test_cases"
    try:
        return json.loads(packed)
    except json.JSONDecodeError:
        pass
    try:
        text = _PlainUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()
    except Exception as error:  # a broken pickle raises almost anything
        _wrong(field, f"neither JSON nor pickled JSON text ({type(error).__name__}: {error})")
    return _json(text, field) if isinstance(text, str) else _wrong(field, f"a pickled {type(text).__name__}, not text")


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles numbers, text and containers of them; anything that needs a class or a function is an error."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"the pickle refers to {module}.{name}")


def _tests(cases: Any, field: str) -> list[dict[str, str]]:
    if not isinstance(cases, Sequence) or isinstance(cases, str):
        _wrong(field, "not a list")
    names = ("input", "output")
    return [{name: column(case, name, str, within=field) for name in names} for case in cases]


def _call(test: Mapping[str, str]) -> Row:
    arguments = [_json(line, "input") for line in test["input"].split("\n") if line.strip()]
    return {"input": arguments, "output": _json(test["output"], "output")}


def _json(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        _wrong(field, f"not JSON ({error})")
