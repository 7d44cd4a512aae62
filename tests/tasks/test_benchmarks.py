"""The table of benchmarks: each row function on a row as published; tests that rows carry are run for real."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from gtpo.errors import ConfigError, DataError
from gtpo.tasks.benchmark_rows import private_tests
from gtpo.tasks.benchmarks import BENCHMARKS, TABLE, get_benchmark

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def packed(value):
    """As LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


HUMANEVAL = {
    "task_id": "HumanEval/38",
    "prompt": "from typing import List\n\n\ndef turn(s: str):\n    return s[1:] + s[0]\n\n\n"
    'def turn_back(s: str):\n    """\n    takes as input string turned by turn. Returns the original.\n    """\n',
    "entry_point": "turn_back",
    "canonical_solution": "    return s[-1] + s[:-1]\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    for text in ['abc', 'x']:\n"
    "        assert candidate(turn(text)) == text\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a python function to remove first and last occurrence of a given character from the string.",
    "code": "def remove_Occ(s,ch): \r\n    s = s.replace(ch, '', 1)\r\n    return s[::-1].replace(ch, '', 1)[::-1] ",
    "test_list": [
        'assert remove_Occ("hello","l") == "heo"',
        'assert remove_Occ("abcda","a") == "bcd"',
        'assert remove_Occ("PHP","P") == "H"',
    ],
    "test_setup_code": "",
    "challenge_test_list": ['assert remove_Occ("","l") == ""'],
}
STDIN = {
    "question_title": "A and B",
    "question_content": "Print the sum of two numbers.",
    "platform": "atcoder",
    "question_id": "abc387_a",
    "contest_id": "abc387",
    "contest_date": "2025-01-04T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": '[{"input": "1 2", "output": "3", "testtype": "stdin"}]',
    "private_test_cases": packed(json.dumps([{"input": "20 25\n", "output": "45\n", "testtype": "stdin"}])),
    "metadata": "{}",
}
FUNCTIONAL = {
    **STDIN,
    "question_id": "3487",
    "platform": "leetcode",
    "starter_code": "class Solution:\n    def pair(self, nums: List[int], name: str) -> List[int]:\n        ",
    "public_test_cases": '[{"input": "[4, 3]\\n\\"a\\\\nb\\"", "output": "[2, 3]", "testtype": "functional"}]',
    "private_test_cases": packed(json.dumps([{"input": '[]\n""', "output": "[0, 0]", "testtype": "functional"}])),
    "metadata": '{"func_name": "pair"}',
}
MULTI_HOP = {
    "id": "dev_0",
    "question": " Who is the spouse of the Green performer?",
    "golden_answers": ["Miquette Giraudy", "Giraudy", "Miquette Giraudy"],
    "metadata": {"type": "bridge"},
}
MULTI_HOP_ROW = {
    "id": "dev_0",
    "question": "Who is the spouse of the Green performer?",
    "answer": "Miquette Giraudy",
    "aliases": ["Miquette Giraudy", "Giraudy"],
    "verifier": "qa",
}
CHOICES = {"text": ["bank", "library", "mall"], "label": ["A", "B", "C"]}

# Name: a row as published, the row it becomes, and the columns that it can't do without.
SAMPLES = {
    "aime24": (
        {
            "id": 86,
            "problem": "Alice chooses a set $A$ of positive integers.",
            "solution": "Add these up to get $\\boxed{055}$.",
            "answer": "055",
            "url": "https://artofproblemsolving.com/wiki/index.php/2024_AIME_II_Problems/Problem_12",
            "year": "2024",
        },
        {"id": "86", "question": "Alice chooses a set $A$ of positive integers.", "answer": "55"},
        "id problem answer",
    ),
    "aime25": (
        {
            "problem": "Find the sum of all integer bases $b>9$ for which $17_b$ is a divisor of $97_b.$",
            "answer": "70",
            "id": "0",
        },
        {
            "id": "0",
            "question": "Find the sum of all integer bases $b>9$ for which $17_b$ is a divisor of $97_b.$",
            "answer": "70",
        },
        "id problem answer",
    ),
    "amc23": (
        {"id": 0, "answer": "27.0", "url": "https://artofproblemsolving.com", "question": "How many miles from $A$?"},
        {"id": "0", "question": "How many miles from $A$?", "answer": "27"},
        "id question answer",
    ),
    "math500": (
        {
            "problem": "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates.",
            "solution": "The polar coordinates are $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
            "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/807.json",
        },
        {
            "id": "test/precalculus/807.json",
            "question": "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates.",
            "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
        },
        "unique_id problem answer",
    ),
    "olympiadbench": (
        {
            "id": 1709,
            "question": "Find all triples.",
            "solution": ["Long."],
            "final_answer": ["$(1,8,19), (2,7,13), (4,5,7)$"],
            "context": None,
            "image_1": None,
            "modality": "Text-only",
            "difficulty": "Competition",
            "is_multiple_answer": True,
            "unit": None,
            "answer_type": "Tuple",
            "error": None,
            "question_type": "Open-ended",
            "subfield": "Number Theory",
            "subject": "Math",
            "language": "English",
        },
        {
            "id": "1709",
            "question": "Find all triples.\nThere are several answers: give all of them, separated by commas.",
            "answer": "(1,8,19), (2,7,13), (4,5,7)",
        },
        "id question final_answer is_multiple_answer",
    ),
    "gsm8k": (
        {"question": "How much does she make?", "answer": "Janet sells 16 - 3 = <<16-3=13>>13 eggs.\n#### 1,080"},
        {
            "question": "How much does she make?",
            "answer": "1080",
            "solution": "Janet sells 16 - 3 = <<16-3=13>>13 eggs.\n#### 1,080",
        },
        "question answer",
    ),
    "svamp": (
        {
            "ID": "chal-736",
            "Body": "There are 41 bird families. If 35 flew away to asia and 62 flew away to africa",
            "Question": "How many more flew away to africa?",
            "Equation": "( 62.0 - 35.0 )",
            "Answer": "27",
            "Type": "Subtraction",
            "question_concat": "There are 41 bird families.",
        },
        {
            "id": "chal-736",
            "question": "There are 41 bird families. If 35 flew away to asia and 62 flew away to africa. "
            "How many more flew away to africa?",
            "answer": "27",
        },
        "ID Body Question Answer",
    ),
    "gsm_hard": (
        {"input": "How much in dollars does she make?", "code": "def solution():\n    ...", "target": -9867630.0},
        {"question": "How much in dollars does she make?", "answer": "-9867630"},
        "input target",
    ),
    "commonsenseqa": (
        {
            "id": "1afa02df02c908a558b4036e80242fac",
            "question": "A revolving door serves as a security measure at a what?",
            "question_concept": "revolving door",
            "choices": CHOICES,
            "answerKey": "A",
        },
        {
            "id": "1afa02df02c908a558b4036e80242fac",
            "question": "A revolving door serves as a security measure at a what?\n(A) bank\n(B) library\n(C) mall",
            "answer": "A",
            "choices": ["bank", "library", "mall"],
            "answer_text": "bank",
            "verifier": "choice",
        },
        "id question choices answerKey",
    ),
    "strategyqa": (
        {
            "qid": "2bc9c4f9c19c167187f2",
            "term": "Genghis Khan",
            "question": "Are more people today related to Genghis Khan than Julius Caesar?",
            "answer": True,
            "facts": "Julius Caesar had three children.",
        },
        {
            "id": "2bc9c4f9c19c167187f2",
            "question": "Are more people today related to Genghis Khan than Julius Caesar?",
            "answer": "yes",
            "verifier": "choice",
        },
        "question answer",
    ),
    "arc_challenge": (
        {
            "id": "MCAS_2000_4_6",
            "question": "Which technology?",
            "choices": {"text": ["bus", "radio", "car", "plane"], "label": ["1", "2", "3", "4"]},
            "answerKey": "2",
        },
        {
            "id": "MCAS_2000_4_6",
            "question": "Which technology?\n(A) bus\n(B) radio\n(C) car\n(D) plane",
            "answer": "B",
            "choices": ["bus", "radio", "car", "plane"],
            "answer_text": "radio",
            "verifier": "choice",
        },
        "id question choices answerKey",
    ),
    "openbookqa": (
        {"id": "8-343", "question_stem": "To save money is to", "choices": CHOICES, "answerKey": "C"},
        {
            "id": "8-343",
            "question": "To save money is to\n(A) bank\n(B) library\n(C) mall",
            "answer": "C",
            "choices": ["bank", "library", "mall"],
            "answer_text": "mall",
            "verifier": "choice",
        },
        "id question_stem choices answerKey",
    ),
    "hotpotqa": (MULTI_HOP, MULTI_HOP_ROW, "id question golden_answers"),
    "2wiki": (MULTI_HOP, MULTI_HOP_ROW, "id question golden_answers"),
    "musique": (MULTI_HOP, MULTI_HOP_ROW, "id question golden_answers"),
    "bamboogle": (
        {"id": "test_0", "question": "Who was president?", "golden_answers": ["james madison"]},
        {
            "id": "test_0",
            "question": "Who was president?",
            "answer": "james madison",
            "aliases": ["james madison"],
            "verifier": "qa",
        },
        "id question golden_answers",
    ),
    "humaneval": (
        HUMANEVAL,
        {
            "id": "HumanEval/38",
            "question": "Write this Python function. Give the whole program: the function with its signature, and the "
            "imports and helpers that it needs.\n\n```python\n" + HUMANEVAL["prompt"].strip() + "\n```",
            "answer": HUMANEVAL["test"].strip() + "\n\ncheck(turn_back)\n",
            "answer_kind": "tests",
            "entry_point": "turn_back",
            "prelude": "from typing import List\n\n\ndef turn(s: str):\n    return s[1:] + s[0]\n",
            "reference": HUMANEVAL["prompt"] + HUMANEVAL["canonical_solution"],
        },
        "task_id prompt entry_point canonical_solution test",
    ),
    "mbpp": (
        MBPP,
        {
            "id": "11",
            "question": MBPP["text"] + "\nYour code should pass these tests:\n\n" + "\n".join(MBPP["test_list"]),
            "answer": "\n".join(MBPP["test_list"]) + "\n",
            "answer_kind": "tests",
            "entry_point": "remove_Occ",
            "prelude": "",
            "reference": MBPP["code"].replace("\r\n", "\n"),
        },
        "task_id text code test_list test_setup_code",
    ),
    "livecodebench": (
        STDIN,
        {
            "id": "abc387_a",
            "question": "Print the sum of two numbers.\n\n"
            "The program reads from standard input and writes to standard output.",
            "answer": '[{"input": "1 2", "output": "3"}, {"input": "20 25\\n", "output": "45\\n"}]',
            "answer_kind": "io",
        },
        "question_id question_content starter_code public_test_cases private_test_cases metadata",
    ),
}


def needed(name):
    return SAMPLES[name][2].split()


def row(name, **changes):
    return BENCHMARKS[name].row({**SAMPLES[name][0], **changes})


def test_names_and_values_of_the_table():
    assert len(BENCHMARKS) == len(TABLE)
    assert set(SAMPLES) == set(BENCHMARKS)
    verifiers = {"math": {"math"}, "commonsense": {"choice", "qa"}, "code": {"code"}}
    for benchmark in TABLE:
        assert get_benchmark(benchmark.name) is benchmark
        assert re.fullmatch("[a-z0-9_]+", benchmark.name)
        assert benchmark.verifier in verifiers[benchmark.domain]
        assert benchmark.revision is None or re.fullmatch("[0-9a-f]{40}", benchmark.revision)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", benchmark.hub)
        assert benchmark.samples >= 1
        assert benchmark.split
        assert benchmark.source


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown benchmark 'aime'; available: aime24, aime25, .*livecodebench"):
        get_benchmark("aime")


@pytest.mark.parametrize("name", SAMPLES)
def test_a_published_row_becomes_a_row_of_ours(name):
    raw, expected, _ = SAMPLES[name]
    before = json.dumps(raw)
    got = BENCHMARKS[name].row(raw)
    if name == "livecodebench":
        assert got.pop("prelude").startswith("from string import *\n")
    assert got == expected
    assert json.dumps(raw) == before
    json.dumps(got)
    if BENCHMARKS[name].domain == "commonsense":
        assert got["verifier"] == BENCHMARKS[name].verifier


@pytest.mark.parametrize(("name", "column"), [(name, column) for name in SAMPLES for column in needed(name)])
def test_a_missing_column_is_named(name, column):
    raw = dict(SAMPLES[name][0])
    for broken in ({**raw, column: None}, {key: value for key, value in raw.items() if key != column}):
        with pytest.raises(DataError, match=f"field '{column}': missing or null") as caught:
            BENCHMARKS[name].row(broken)
        assert caught.value.field == column


@pytest.mark.parametrize("name", SAMPLES)
def test_other_columns_are_not_needed(name):
    raw = SAMPLES[name][0]
    used = [*needed(name), "qid"]
    bare = {key: value for key, value in raw.items() if key in used}
    assert BENCHMARKS[name].row(bare) == BENCHMARKS[name].row(raw)


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("aime24", "answer", 5.5),
        ("aime24", "problem", " "),
        ("amc23", "answer", True),
        ("gsm8k", "answer", "18"),
        ("gsm8k", "answer", "so it is\n####"),
        ("gsm_hard", "target", float("nan")),
        ("olympiadbench", "is_multiple_answer", "False"),
        ("olympiadbench", "final_answer", []),
        ("commonsenseqa", "answerKey", ""),
        ("commonsenseqa", "choices", ["bank"]),
        ("commonsenseqa", "choices", {"text": ["bank"], "label": ["A", "B"]}),
        ("strategyqa", "answer", "yes"),
        ("hotpotqa", "golden_answers", [""]),
        ("humaneval", "entry_point", "turn_bac"),
        ("mbpp", "test_list", []),
        ("livecodebench", "metadata", "{"),
        ("livecodebench", "public_test_cases", "{}"),
        ("livecodebench", "private_test_cases", "AAAA"),
    ],
)
def test_a_value_of_another_form_is_named(name, column, value):
    with pytest.raises(DataError, match="has the data set changed") as caught:
        row(name, **{column: value})
    assert caught.value.field == column


@pytest.mark.parametrize(
    ("target", "answer"),
    [(14240461.0, "14240461"), (0.25, "0.25"), ("1,234.50", "1234.50"), (5, "5"), ("007", "7"), ("1,2", "1,2")],
)
def test_numbers_get_their_plainest_spelling(target, answer):
    assert row("gsm_hard", target=target)["answer"] == answer


def test_a_single_answer_and_a_unit_of_olympiadbench():
    got = row("olympiadbench", is_multiple_answer=False, final_answer=["$\\frac{1}{2}$"], unit="cm")
    assert got["answer"] == "\\frac{1}{2}"
    assert got["question"] == "Find all triples.\nLeave the unit out of the answer."
    assert row("olympiadbench", final_answer=["1", "$2$", "3\\$"])["answer"] == "1, 2, 3\\$"


def test_a_question_of_svamp_keeps_its_own_period():
    assert row("svamp", Body="He had 3. ")["question"] == "He had 3. How many more flew away to africa?"


def test_rows_without_an_id_of_their_own():
    assert "id" not in row("gsm8k")
    assert "id" not in row("strategyqa", qid=None)
    assert row("strategyqa", answer=False)["answer"] == "no"


def run(program, stdin=""):
    return subprocess.run([sys.executable, "-c", program], input=stdin, capture_output=True, text=True, timeout=60)


def passes(row, program):
    return run("\n".join([row["prelude"], program, row["answer"]])).returncode == 0


def test_tests_of_humaneval_tell_right_from_wrong():
    got = row("humaneval")
    assert passes(got, got["reference"])
    assert passes(got, "def turn_back(s):\n    return s[-1] + s[:-1]")  # its helper stands in the prelude
    assert not passes(got, "def turn_back(s):\n    return s")
    assert not passes(got, "")


def test_the_prelude_of_humaneval_may_be_empty():
    got = row("humaneval", prompt='\n\ndef turn_back(s: str):\n    """Turns."""\n')
    assert got["prelude"] == ""


def test_tests_of_mbpp_tell_right_from_wrong():
    got = row("mbpp")
    assert passes(got, got["reference"])
    assert not passes(got, "def remove_Occ(s, ch):\n    return s.replace(ch, '')[:2]")


def test_setup_of_mbpp_runs_behind_the_candidate():
    code = "class Node:\n    def __init__(self, data):\n        self.data = data\n\ndef height(a):\n    return a.data"
    got = row("mbpp", code=code, test_setup_code="root = Node(3)\r\n", test_list=["assert (height(root)) == 3"])
    assert got["answer"] == "root = Node(3)\nassert (height(root)) == 3\n"
    assert got["entry_point"] == "height"
    assert passes(got, code)
    assert not passes(got, code + " + 1")


@pytest.mark.parametrize(
    ("code", "test", "name"),
    [
        ("class Pair: ...\ndef chain(a): ...", "assert chain([Pair(5, 24)], 4) == 3", "chain"),
        ("def lobb(n): ...", "assert int(lobb(5)) == 35", "lobb"),
        ("def tuples(n): ...", "assert set(tuples((3, 4))) == set((4, 5))", "tuples"),
        ("double = lambda n: 2 * n", "assert str(double(2)) == '4'", "double"),
    ],
)
def test_the_entry_point_of_mbpp_is_the_function_under_test(code, test, name):
    assert row("mbpp", code=code, test_list=[test])["entry_point"] == name


def solves(row, program):
    """A plain reading of the form that the module documents."""
    answer = json.loads(row["answer"])
    if isinstance(answer, list):
        runs = [(run(row["prelude"] + program, test["input"]), test["output"]) for test in answer]
        return all(done.returncode == 0 and done.stdout.split() == output.split() for done, output in runs)
    call = f"(Solution() if 'Solution' in globals() else __import__('__main__')).{answer['function']}"
    checks = f"""
for test in __import__('json').loads({row["answer"]!r})['tests']:
    got = {call}(*test['input'])
    assert (list(got) if isinstance(got, tuple) else got) == test['output']
"""
    return run(row["prelude"] + program + checks).returncode == 0


def test_input_and_output_of_livecodebench_tell_right_from_wrong():
    got = row("livecodebench")
    assert solves(got, "a, b = map(int, input().split())\nprint(a + b)")
    assert solves(got, "print(sum(map(int, sys.stdin.read().split())))")  # the prelude imports sys
    assert not solves(got, "print(3)")
    assert not solves(got, "1 / 0")


def test_calls_of_livecodebench_tell_right_from_wrong():
    got = BENCHMARKS["livecodebench"].row(FUNCTIONAL)
    assert json.loads(got["answer"]) == {
        "function": "pair",
        "tests": [{"input": [[4, 3], "a\nb"], "output": [2, 3]}, {"input": [[], ""], "output": [0, 0]}],
    }
    assert (got["answer_kind"], got["entry_point"], got["id"]) == ("io", "pair", "3487")
    assert got["question"].endswith(
        "Complete this code:\n```python\nclass Solution:\n"
        "    def pair(self, nums: List[int], name: str) -> List[int]:\n```"
    )
    method = "class Solution:\n    def pair(self, nums: List[int], name: str):\n        return len(nums), len(name)\n"
    assert solves(got, method)
    assert solves(got, "def pair(nums, name):\n    return [len(nums), len(name)]\n")
    assert not solves(got, method.replace("len(nums)", "0"))


def test_private_tests_in_either_form():
    assert private_tests('[{"input": "1"}]') == [{"input": "1"}]
    assert private_tests(packed('[{"input": "1"}]')) == [{"input": "1"}]


class Mischief:
    def __reduce__(self):
        return os.mkdir, ("mischief",)


@pytest.mark.parametrize(
    "text",
    [packed(Mischief()), packed([1]), packed("{"), base64.b64encode(zlib.compress(b"\x80")).decode(), "not packed"],
)
def test_private_tests_of_another_form_are_refused_unread(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="private_test_cases"):
        private_tests(text)
    assert not list(tmp_path.iterdir())


def test_a_pickle_that_would_run_code_runs_it_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(zlib.decompress(base64.b64decode(packed(Mischief()))))
    assert (tmp_path / "mischief").is_dir()


def test_the_page_has_the_table():
    lines = {line.split("|")[1].strip(): line for line in DOCS.read_text().splitlines() if line.startswith("| ")}
    for benchmark in TABLE:
        cells = [cell.strip() for cell in lines[f"`{benchmark.name}`"].strip("|").split("|")]
        assert cells[1:4] == [f"`{benchmark.hub}`", benchmark.config or "", benchmark.split]
        assert cells[4] == (f"`{benchmark.revision}`" if benchmark.revision else "not pinned")
        assert cells[5:7] == [benchmark.verifier, str(benchmark.samples)]
        assert benchmark.source.removeprefix("https://huggingface.co/datasets/") in cells[7]


def test_the_page_has_the_notes():
    notes = re.findall(r"^- `(\w+)`: ((?:.|\n(?!- |\n))*)", DOCS.read_text(), re.MULTILINE)
    assert {name: " ".join(note.split()) for name, note in notes} == {b.name: b.note for b in TABLE if b.note}
