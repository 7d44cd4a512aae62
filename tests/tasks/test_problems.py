import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from gtpo.errors import ConfigError, DataError
from gtpo.tasks.problems import Problem, load_problems, sample


@pytest.fixture
def write(tmp_path):
    def write(*lines: object) -> Path:
        path = tmp_path / "sums.jsonl"
        texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(texts))
        return path

    return write


def row(**fields: object) -> dict[str, object]:
    return {"question": "1+1?", "answer": "2", **fields}


def test_rows_become_problems_and_other_fields_extras(write):
    path = write(row(id="a", domain="code", level=3), row(question="2+2?", answer=4))
    assert load_problems(path) == [
        Problem("a", "1+1?", "2", "code", {"level": 3}),
        Problem("sums/1", "2+2?", "4", "math", {}),
    ]


def test_default_id_counts_lines_of_the_file_also_blank_ones(write):
    assert [p.id for p in load_problems(write(row(), b"", row()))] == ["sums/0", "sums/2"]


def test_a_byte_order_mark_and_windows_line_ends_are_fine(write):
    raw = json.dumps(row()).encode()
    assert len(load_problems(write(b"\xef\xbb\xbf" + raw + b"\r", raw + b"\r"))) == 2


def test_limit_stops_reading(write):
    path = write(row(), row(), b"broken")
    assert len(load_problems(path, limit=2)) == 2
    with pytest.raises(DataError, match=":3: broken JSON"):
        load_problems(path, limit=3)
    with pytest.raises(ConfigError, match="limit is 0"):
        load_problems(path, limit=0)


def test_problems_hash_compare_and_pickle(write):
    problems = load_problems(write(row(extra=[1])))
    assert len({*problems, *pickle.loads(pickle.dumps(problems))}) == 1


@pytest.mark.parametrize(
    ("line", "where", "says"),
    [
        (b'{"question": "1+1?", "answer"}', None, "broken JSON at column 30"),
        (b'{"question": "1+1?"', None, "broken JSON"),
        (b"[1, 2]", None, "a JSON array, not an object"),
        (b"[" * 100_000, None, "nested too deeply"),
        ('{"question": "é"}'.encode("latin-1"), None, "not UTF-8 (byte 0xe9 at column 15)"),
        ({"answer": "2"}, "question", "missing or null"),
        ({"question": "1+1?", "solution": "2"}, "answer", "the row has: question, solution"),
        (row(answer=None), "answer", "missing or null"),
        (row(question=" \n"), "question", "blank"),
        (row(question=7), "question", "a JSON number"),
        (row(answer=""), "answer", "blank"),
        (row(answer=[["2"]]), "answer", "not a list of answers"),
        (row(answer=[]), "answer", "not a list of answers"),
        (row(answer=True), "answer", "a JSON boolean"),
        (
            row(id="evil", verifier="cProfile:run"),
            "verifier",
            "id 'evil': a row cannot name the verifier 'cProfile:run'",
        ),
        (row(verifier="./own.py:judge"), "verifier", "pass --verifier MODULE:FUNCTION on the command line"),
        (row(verifier=["math"]), "verifier", "available: math, choice, qa, code, reasoning_gym"),
        (b'{"question": "1+1?", "answer": NaN}', "answer", "not a finite number"),
        (row(id=[1]), "id", "a JSON array"),
        (row(id="a"), "id", "the id of line 1"),
        (row(domain=""), "domain", "not a name"),
    ],
)
def test_a_fault_is_named_with_file_line_and_field(write, line, where, says):
    path = write(row(id="a"), line)
    with pytest.raises(DataError) as caught:
        load_problems(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: " + (f"field {where!r}: " if where else ""))
    assert says in message
    assert (caught.value.path, caught.value.line, caught.value.field) == (path, 2, where)


def test_the_first_five_faults_are_reported_together(write):
    path = write(row(), b"{", row(answer=""), row(question=""), b"[]", {}, b"never reached")
    with pytest.raises(DataError, match="first 5 errors") as caught:
        load_problems(path)
    assert [f":{n}: " in str(caught.value) for n in range(1, 8)] == [False, *[True] * 5, False]


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_an_error(write, content):
    with pytest.raises(DataError, match="contains no problems"):
        load_problems(write(content))


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_problems(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="can't be read"):
        load_problems(tmp_path)


def test_further_fields_can_be_required_and_the_answer_left_out(write):
    with pytest.raises(DataError, match="field 'solution'"):
        load_problems(write(row()), require=("question", "answer", "solution"))
    assert load_problems(write({"question": "?"}), require=("question",))[0].answer == ""


def test_a_sample_depends_on_seed_and_ids_alone():
    problems = [Problem(str(i), "?", "1") for i in range(100)]
    drawn = sample(problems, 10, seed=0)
    assert drawn != sample(problems, 10, seed=1)
    assert {p.id for p in drawn} == {p.id for p in sample(problems[::-1], 10, seed=0)}
    assert {p.id for p in drawn} < {p.id for p in sample(problems, 11, seed=0)}
    assert [int(p.id) for p in drawn] == sorted(int(p.id) for p in drawn)
    code = (
        "from gtpo.tasks.problems import Problem, sample\n"
        "print([p.id for p in sample([Problem(str(i), '?', '1') for i in range(100)], 10, seed=0)])"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str([p.id for p in drawn])


def test_samples_of_all_none_and_too_many():
    problems = [Problem(str(i), "?", "1") for i in range(3)]
    assert sample(problems, 3, seed=5) == problems
    assert sample(problems, 0, seed=5) == []
    with pytest.raises(ConfigError, match="can't draw 4 of 3"):
        sample(problems, 4, seed=5)


@pytest.mark.parametrize(("name", "rows"), [("gsm8k_train", 7473), ("svamp", 1000), ("cruxeval_output", 800)])
def test_real_files_load(shared_data, name, rows):
    assert len(load_problems(shared_data / f"{name}.jsonl")) == rows


def test_problems_load_without_torch():
    code = "import sys, gtpo.tasks.problems, gtpo.tasks.verifiers.math; sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
