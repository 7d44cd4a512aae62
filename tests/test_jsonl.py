"""Files of rows as people have them: every fault is one sentence with file, line and field."""

from __future__ import annotations

import gzip
import json

import pytest

from gtpo._jsonl import numbered_rows, rows
from gtpo.errors import DataError
from gtpo.tasks.problems import load_problems
from gtpo.tasks.verifiers import get_verifier

ROW = b'{"question": "1+1?", "answer": "2"}'


@pytest.fixture
def write(tmp_path):
    def make(content):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content)
        return path

    return make


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            ROW + b'\n{"question": "q", "answer": ' + b"7" * 5000 + b"}",
            r":2: field 'answer': .*5000 digits; write it as",
        ),
        (ROW + b'\n{"a": {"b": [1, [' + b"7" * 5000 + b"]]}}", r":2: field 'b': a whole number of 5000 digits"),
        (ROW + b'\n{"a": NaN}', r":2: field 'a': NaN is not a finite number; give"),
        (ROW + b'\n{"a": [-Infinity]}', r":2: field 'a': -Infinity is not a finite number"),
        (ROW + b'\n{"a": 1e999}', r":2: field 'a': 1e999 is not a finite number"),
        (ROW + b'\n{"question": "q", "answer": "1", "answer": "2"}', r":2: field 'answer': occurs twice; keep one"),
        (ROW + b'\n{"a": {"b": 1, "b": 1}}', r":2: field 'b': occurs twice"),
        (ROW + b"\n" + b'{"a":' * 10**5, r":2: JSON nested too deeply"),
        (gzip.compress(ROW, mtime=0), r": not text but gzip; give JSON Lines"),
        (b"PAR1" + bytes(50), r": not text but Parquet"),
        (bytes(50), r": not text but binary"),
        ((ROW + b"\n").decode().encode("utf-16"), r": UTF-16; save the file as UTF-8"),
        (ROW + b'\n{"a": "\xff"}', r":2: not UTF-8 \(byte 0xff at column 8\)"),
    ],
)
def test_what_can_not_be_read_is_one_sentence(write, content, says):
    with pytest.raises(DataError, match=rf"rows\.jsonl{says}") as caught:
        list(rows(write(content)))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_byte_order_mark_and_line_ends_of_windows_are_passed_over(write):
    path = write(b"\xef\xbb\xbf" + ROW + b"\r\n\r\n" + ROW + b"\r\n")
    assert [(number, row["answer"]) for number, row in rows(path)] == [(1, "2"), (3, "2")]


def test_a_line_without_end_is_given_up_at_its_size(write, monkeypatch):
    monkeypatch.setattr("gtpo._jsonl.MOST_LINE_BYTES", 1 << 20)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: a line of more than 1 MiB"):
        list(rows(write(ROW + b"\n" + b"[" * (3 << 20))))
    with pytest.raises(DataError, match="can't be read"):
        list(numbered_rows(write(ROW).parent))


def test_a_whole_number_that_python_reads_is_kept(write):
    (problem,) = load_problems(write(b'{"question": "q", "answer": ' + b"7" * 4300 + b"}"))
    assert problem.answer == "7" * 4300


@pytest.mark.parametrize(("name", "gold"), [("math", "7"), ("choice", "B"), ("qa", "7"), ("auto", "7")])
def test_answers_of_5000_digits_are_verified_or_named_as_unusable(write, name, gold):
    digits = "7" * 5000
    rows = [{"question": "Which?\n(A) 6\n(B) 7", "answer": answer} for answer in (gold, digits)]
    short, long = load_problems(write("\n".join(map(json.dumps, rows)).encode()))
    verifier = get_verifier(name)
    try:
        unusable = verifier.unusable([short, long])
        assert "rows/0" not in unusable
        assert name == "qa" or unusable["rows/1"]
        texts = [f"\\boxed{{{digits}}}", f"the answer is {digits}", "\\boxed{1e99999999}", f"\\boxed{{{gold}}}"]
        found = [verdict.passed for verdict in verifier.verify_many(texts, [short] * 4)]
    finally:
        verifier.close()
    assert found[:3] == [False] * 3
