"""What the user's own code does wrong is one sentence: which code, what error, and the line of theirs."""

from __future__ import annotations

import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from gtpo._own_code import described, imported, own_code
from gtpo.cli import main
from gtpo.errors import ConfigError, DataError, RewardError, VerifierError
from gtpo.rollout.environment import Environments
from gtpo.tasks.problems import Problem
from gtpo.tasks.row_forms import RowReader
from gtpo.tasks.verifiers import get_verifier


def share(total):
    return 1 / total


def deeper(text):
    return json.loads(text)


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError


def wordless():
    raise Wordless


def first_line(function):
    return inspect.getsourcelines(function)[1] + 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def f(:\n", r"SyntaxError: .* \(.*own\.py, line 1\)"),
        ("\n  x = 1\ny = 2\n", r"IndentationError: .* \(.*own\.py, line 2\)"),
        ("\nx = unknown\n", r"NameError: name 'unknown' is not defined \(.*own\.py, line 2\)"),
        ("import json\n\njson.loads('{')\n", r"JSONDecodeError: .* \(.*own\.py, line 3\)"),
        ("import no_such_package\n", r"ModuleNotFoundError: .*'no_such_package' \(.*own\.py, line 1\)"),
        ("f = 3\n", "is not callable"),
        ("f = None\n", "is not callable"),
        ("", "there is no 'f' in it"),
        ("def ff(): ...\n", "there is no 'f' in it; did you mean 'ff'"),
    ],
)
def test_a_file_that_can_not_be_imported_is_told_with_the_line(tmp_path, text, fault):
    path = tmp_path / "own.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^reward_funcs '.*own\.py:f': .*{fault}"):
        imported(f"{path}:f", "reward_funcs")


def test_a_module_that_is_missing_is_told_how_a_file_is_given():
    with pytest.raises(ConfigError, match=r"No module named 'rewards'; .* give its path, \./rewards\.py:f$"):
        imported("rewards:f", "reward_funcs")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (partial(share, 0), "ZeroDivisionError: division by zero"),
        (partial(deeper, "{"), "JSONDecodeError: Expecting property name enclosed in double quotes"),
        (wordless, r"Wordless: \(without text\)"),
    ],
)
def test_the_line_is_the_last_of_the_users_own(call, said):
    place = rf"\({__file__}, line {first_line(getattr(call, 'func', call))}\)"
    with pytest.raises(RewardError, match=rf"^it raised {said}.* {place}$"), own_code("it", RewardError):
        call()


def test_what_a_thread_raises_has_the_line_of_the_function_that_ran_there():
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(share, 0).exception()
    assert described(error) == f"ZeroDivisionError: division by zero ({__file__}, line {first_line(share)})"


def test_errors_of_gtpo_are_passed_on():
    mine = ConfigError("mine")
    with pytest.raises(ConfigError) as found, own_code("it", RewardError):
        raise mine
    assert found.value is mine


def test_the_line_is_told_wherever_such_code_is_called(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def f(*args, **columns):\n    return {}['x']\n\nclass E:\n    __init__ = f\n")
    place = r"raised KeyError: 'x' \(.*own\.py, line 2\)$"
    with pytest.raises(VerifierError, match=rf"^verifier .*own\.py:f, problem p: {place}"):
        get_verifier(f"{path}:f").verify_many(["2"], [Problem("p", "math", "1 + 1?", "2")])
    with pytest.raises(DataError, match=f"^the function of --columns {place}"):
        RowReader(imported(f"{path}:f", "columns")).read({"a": 1})
    with pytest.raises(ConfigError, match=r"environment E: can't be created: KeyError: 'x' \(.*own\.py, line 2\)$"):
        Environments(imported(f"{path}:E", "environment"))


def test_the_command_line_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.py").write_text("def rows(row):\n    return row['task']\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1?"}\n')
    argv = ["--solutions", "rows.jsonl", "--tool_format", "fenced", "--columns", "./rows.py:rows"]
    assert main(["make-traces", *argv]) == 2
    said = capsys.readouterr().err
    assert "rows.jsonl:1: the function of --columns raised KeyError: 'task'" in said
    assert "rows.py, line 2)" in said
    assert "Traceback" not in said
