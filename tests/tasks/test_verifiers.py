"""Choosing verifiers, functions of the user's own, reasoning-gym's scorers, and the check of the checkers."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gtpo.cli import main
from gtpo.errors import ConfigError, VerifierError
from gtpo.tasks.adversarial import wrong_answers
from gtpo.tasks.answer_types import answer_type
from gtpo.tasks.checking import check_verifier
from gtpo.tasks.problems import Problem
from gtpo.tasks.sources import problems_from
from gtpo.tasks.verifiers import Verdict, get_verifier

MATH = Problem("m", "?", "2")
CHOICE = Problem("c", "?\n(A) x\n(B) y", "B", "commonsense", {"choices": ["x", "y"]})
QA = Problem("q", "?", "Paris", "commonsense", {"aliases": ["Paris", "City of Light"]})
LITERAL = Problem("l", "?", "[1]", "code", {"answer_kind": "literal"})


@pytest.fixture
def auto():
    verifier = get_verifier("auto")
    yield verifier
    verifier.close()


def test_each_problem_gets_the_verifier_that_it_asks_for(auto):
    problems = [QA, MATH, LITERAL, CHOICE, MATH]
    texts = ["\\boxed{city of light}", "\\boxed{4/2}", "\\boxed{[1]}", "\\boxed{(A)}", None]
    assert [v.passed for v in auto.verify_many(texts, problems)] == [True, True, True, False, False]
    assert auto.classes(["paris", "the Paris", "Rome"], QA) == [0, 0, 1]
    assert auto.classes(["0.5", "\\frac12", "1"], MATH) == [0, 0, 1]
    assert auto.has_answer("\\boxed{1}", MATH)
    assert not auto.has_answer("none", MATH)
    assert auto.verify_many([], []) == []


def test_whether_there_is_an_answer_depends_on_the_problem_alone():
    texts = ["```python\nx = 1\n```", "\\boxed{1}", "<answer>Paris</answer>", "none"]
    program = Problem("t", "?", "assert f(1)", "code")
    expected = {
        program: [True, False, True, False],
        MATH: [False, True, False, False],
        QA: [False, True, True, False],
        LITERAL: [False, True, True, False],
        Problem("w", "?", "guilty", "law"): [False] * 4,
    }
    for problems in (expected, reversed(expected)):
        auto = get_verifier("auto")
        for problem in problems:
            assert [auto.has_answer(text, problem) for text in texts] == expected[problem]
        auto.close()


def test_problems_without_a_verifier_are_named_before_a_run(auto):
    law = Problem("w", "?", "guilty", "law")
    odd = Problem("o", "?", "1", extras={"verifier": "oracle"})
    loop = Problem("a", "?", "1", extras={"verifier": "auto"})
    found = auto.unusable([law, MATH, odd, loop])
    assert set(found) == {"w", "o", "a"}
    assert "the domain 'law'" in found["w"]
    assert "unknown verifier 'oracle'; available: auto, math, choice" in found["o"]
    with pytest.raises(VerifierError, match="the domain 'law'"):
        auto.verify_many(["x"], [law])


def test_limits_are_set_with_the_name():
    code = get_verifier("code?cpu_s=10&memory_mb=700")
    assert (code._limits.cpu_s, code._limits.wall_s, code._limits.memory_mb) == (10.0, 20.0, 700)
    code.close()
    auto = get_verifier("auto?min_f1=0.5&cpu_s=1")
    assert auto.verify_many(["\\boxed{Paris France}"], [QA])[0].passed
    assert answer_type(LITERAL, "auto?cpu_s=1") == answer_type(LITERAL, "code?cpu_s=1") == "literal"
    for name, fault in (
        ("code?timeout_s=1", "verifier 'code' has no setting 'timeout_s'; available: cpu_s, wall_s, memory_mb"),
        ("math?timeout_s=x", "setting 'timeout_s' of the verifier must be a number, not 'x'"),
        ("choice?x=1", "available: none"),
    ):
        with pytest.raises(ConfigError, match=fault):
            get_verifier(name)


def test_a_row_can_not_name_code(auto, capsys):
    """What the model wrote must not reach a function that the data chose: cProfile.run executes it."""
    evil = Problem("evil", "?", "1", extras={"verifier": "cProfile:run"})
    assert "a row cannot name the verifier 'cProfile:run'" in auto.unusable([evil])["evil"]
    with pytest.raises(VerifierError, match="problem evil: a row cannot name the verifier 'cProfile:run'"):
        auto.verify_many(["print('executed')"], [evil])
    assert "executed" not in capsys.readouterr().out


def test_a_function_comes_from_a_named_file_and_never_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "own_judge.py").write_text("def judge(text, problem):\n    return True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", str(tmp_path), *sys.path])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(ConfigError, match=r"for a file of your own give its path, \./own_judge\.py:judge"):
        get_verifier("own_judge:judge")
    for path in ("./own_judge.py:judge", f"{tmp_path}/own_judge.py:judge"):
        assert get_verifier(path).verify_many(["x"], [MATH])[0].passed
    with pytest.raises(ConfigError, match="can't be imported"):
        get_verifier("./missing.py:judge")


def verdict(text, problem):
    """A user's function; what it returns stands in the text."""
    return eval(text)


@pytest.mark.parametrize(
    ("text", "passed", "score"),
    [("True", True, 1.0), ("False", False, 0.0), ("1.0", True, 1.0), ("0.5", False, 0.5)],
)
def test_a_function_returns_a_verdict_or_a_score(text, passed, score):
    (found,) = get_verifier("test_verifiers:verdict").verify_many([text], [MATH])
    assert (found.passed, found.score) == (passed, score)
    assert found.reason == f"test_verifiers:verdict said {eval(text)}"


def test_a_functions_mistakes_are_told():
    verifier = get_verifier("test_verifiers:verdict")
    own = "Verdict(True, 0.7, 'mine')"
    assert verifier.verify_many([own, None], [MATH, MATH])[0] == Verdict(True, 0.7, "mine")
    for text, fault in (
        ("2", "returned 2 for problem m"),
        ("'x'", "returned 'x'"),
        ("1/0", "problem m: raised ZeroDiv"),
    ):
        with pytest.raises(VerifierError, match=fault):
            verifier.verify_many([text], [MATH])
    for path, fault in (("test_verifiers:nothing", "can't be imported"), ("test_verifiers:MATH", "not callable")):
        with pytest.raises(ConfigError, match=fault):
            get_verifier(path)


@pytest.fixture(scope="module")
def gym():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    verifier = get_verifier("reasoning_gym")
    yield verifier
    verifier.close()


@pytest.mark.parametrize("name", ["chain_sum", "countdown", "spell_backward", "leg_counting", "number_sorting"])
def test_reasoning_gym_scores_its_own_answers_one(gym, name):
    problems = problems_from(f"reasoning-gym:{name}?size=3")
    verdicts = gym.verify_many([f"\\boxed{{{p.answer}}}" for p in problems], problems)
    assert [(v.passed, v.score) for v in verdicts] == [(True, 1.0)] * 3, verdicts
    wrong = gym.verify_many(["\\boxed{-12345}"] * 3, problems)
    assert not any(v.passed for v in wrong)


def test_reasoning_gym_answers_that_attack_the_scorer_fail(gym, tmp_path):
    (problem,) = problems_from("reasoning-gym:countdown?size=1")
    mark = tmp_path / "mark"
    attack = f"__import__('pathlib').Path({str(mark)!r}).write_text('x')"
    for answer in (attack, "9**9**9**9", "(" * 5000, "\0", "'''"):
        (found,) = gym.verify_many([f"<answer>{answer}</answer>"], [problem])
        assert not found.passed
    assert not mark.exists(), "it was run in the sandbox"


def test_reasoning_gym_refuses_problems_of_others(gym):
    assert set(gym.unusable([MATH])) == {"m"}
    with pytest.raises(VerifierError, match="was not created by reasoning-gym"):
        gym.verify_many(["\\boxed{2}"], [MATH])
    (problem,) = problems_from("reasoning-gym:chain_sum?size=1")
    assert gym.verify_many([None, "no box"], [problem, problem])[0].reason == "no answer in a box"


class Lenient:
    """Passes whatever holds a digit."""

    def verify_many(self, texts, problems):
        return [Verdict(any(c.isdigit() for c in text), 1.0, "digits") for text in texts]

    def unusable(self, problems):
        return {}


def test_the_check_finds_a_verifier_that_is_too_lenient_or_too_strict():
    problems = [MATH, Problem("n", "?", "x + 1"), Problem("s", "?", "\\text{seven}")]
    found = check_verifier(problems, Lenient(), "math")
    assert [(f.problem_id, f.what) for f in found.findings] == [
        ("s", "gold fails"),
        ("m", "wrong passes"),
        ("m", "wrong passes"),
        ("m", "wrong passes"),
    ]
    assert found.wrong_answers == 3


def test_the_check_is_clean_where_the_verifiers_are(auto):
    tests = Problem(
        "t", "Write f.", "assert f(2) == 4\n", "code", {"entry_point": "f", "reference": "def f(x): return 2*x"}
    )
    found = check_verifier([MATH, CHOICE, QA, replace(QA, id="r", answer="Rome", extras={}), LITERAL, tests], auto)
    assert found.findings == []
    assert found.wrong_answers >= 8
    broken = replace(tests, extras={**tests.extras, "reference": "def f(x): return x"})
    (finding,) = check_verifier([broken], auto).findings
    assert (finding.what, finding.reason) == ("gold fails", "the tests ended with AssertionError")


def test_doctor_verifies_files(capsys, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "?", "answer": "2"}\n{"question": "?", "answer": "?", "domain": "law"}\n')
    assert main(["doctor", "--verify", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "2 problems, 3 wrong answers: 1 unusable, 0 gold fails, 0 wrong passes" in shown
    assert "p/1: unusable: '?'" in shown
    assert main(["doctor", "--verify", str(path), "--verifier", "qa"]) == 0
    assert main(["doctor", "--verifu", "x"]) == 2


FILES = [
    "gsm8k_test",
    "svamp",
    "math_lv35_train_2k",
    "commonsenseqa_train_1k",
    "strategyqa_train",
    "bbh_commonsense",
    "multihop_qa_train_1k",
    "cruxeval_output",
]


@pytest.mark.parametrize("name", FILES)
def test_real_files_are_judged_right(shared_data, auto, name):
    problems = problems_from(str(shared_data / f"{name}.jsonl"))[:150]
    assert check_verifier(problems, auto).findings == []


def test_adversarial_answers_of_all_kinds_fail(auto):
    tests = Problem(
        "t", "?", "assert f(2) == 5\n", "code", {"entry_point": "f", "reference": "def f(n): return n * n + 1"}
    )
    golds = (r"\pi r^2 h", "y=x^2+3", r"\frac{3^{50}}{2^{100}}", "-1", "0")
    math = [Problem(f"m{i}", "?", gold) for i, gold in enumerate(golds)]
    check = check_verifier([*math, CHOICE, QA, LITERAL, tests], auto, adversarial=True)
    assert check.findings == []
    assert check.wrong_answers > 100
    kinds = {kind for problem in math for kind, _ in wrong_answers(problem, "math", ())}
    assert kinds == {"universal", "power", "digit", "lost letter", "case", "two answers", "a letter more"}


@pytest.mark.parametrize("seed", range(2))
def test_nothing_raises_on_what_a_model_may_write(seed):
    fuzz = import_file(Path(__file__).parents[2] / "benchmarks" / "verifiers.py")
    fuzz.fuzz_texts(600, seed)
    fuzz.fuzz_results(3000, seed)


def import_file(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
