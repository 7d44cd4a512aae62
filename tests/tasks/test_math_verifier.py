import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gtpo.errors import ConfigError, VerifierError
from gtpo.tasks.problems import Problem, load_problems
from gtpo.tasks.verifiers import Verdict, get_verifier
from gtpo.tasks.verifiers.answers import canonical, last_boxed, quick_match
from gtpo.tasks.verifiers.math import MEMORY_BYTES, MathVerifier

HANG = r"9^{9^{9^9}}"


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(timeout_s=10, workers=1) as verifier:
        yield verifier


@pytest.fixture
def hasty():
    with MathVerifier(timeout_s=1, workers=1) as verifier:
        yield verifier


def gold(answer: str, name: str = "p") -> Problem:
    return Problem(name, "?", answer)


def box(answer: str) -> str:
    return f"Hence \\boxed{{{answer}}}."


def check(verifier: MathVerifier, candidate: str, answer: str) -> Verdict:
    return verifier.verify_many([box(candidate)], [gold(answer)])[0]


# Candidate, gold answer, and whether it takes math-verify to tell.
EQUAL = [
    ("18", "18", False),
    ("18.00", "18", False),
    (r"\$18", "18", False),
    ("$18$", "18", False),
    ("18.", "18", False),
    ("1,234", "1234", False),
    ("2{,}016{,}532", "2016532", False),
    (r"1\,234", "1234", False),
    ("-3", "−3", False),
    ("1/2", r"\frac{1}{2}", False),
    (r"\frac12", "0.5", False),
    (r"\dfrac{3}{8}", r"\frac{3}{8}", False),
    ("6/8", r"\tfrac{3}{4}", False),
    ("0.333333", r"\frac{1}{3}", False),
    ("3.0000000000000004", "3", False),
    ("1e3", "1000", False),
    (r"50\%", "50", False),
    (r"50\%", "0.5", False),
    ("0.5", "50%", False),
    (r"18\text{ dollars}", "18", False),
    ("18 dollars", "18", False),
    ("45", r"45^\circ", False),
    ("441", r"441\text{ pounds}", False),
    ("2400", r"2400 \mbox{ cm}^2", False),
    (r"5\text{ million}", "5000000", False),
    (r"\left( 3 , -1 \right)", "(3,-1)", False),
    (r"\sqrt 2", r"\sqrt{2}", True),
    (r"2\sqrt{3}", r"\sqrt{12}", True),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
    (r"-\frac{3}{2}", r"\frac{-3}{2}", True),
    ("2(x+1)", "2x+2", True),
    ("y = -3x + 30", "y = 30 - 3x", True),
    ("x = 5", "5", True),
    (r"(-\infty, -27) \cup [-8,-1]", r"(-\infty,-27)\cup[-8,-1]", False),
    ("[0.5, 1)", r"\left[\frac{1}{2},1\right)", True),
    (r"\{2, 1\}", r"\{1,2\}", True),
    ("2, 1", "1, 2", True),
    (r"\text{(D)}", "D", True),
    ("a + c + b", "a + b + c", True),
    (r"\begin{pmatrix} 0.5 \\ 1 \end{pmatrix}", r"\begin{pmatrix} 1/2 \\ 1 \end{pmatrix}", True),
]
UNEQUAL = [
    ("17", "18", False),
    ("-18", "18", False),
    ("1,235", "1234", False),
    ("1000001", "1000000", False),
    ("0.33", r"\frac{1}{3}", False),
    (r"\frac{1}{3}", "0.5", False),
    ("0.0000001", "0.0000002", False),
    (r"0.5\%", r"50\%", False),
    (r"6\text{ a.m.}", r"6\text{ p.m.}", False),
    ("1,23", "123", True),
    (r"\sqrt{3}", r"\sqrt{2}", True),
    ("x + 1", "x - 1", True),
    ("[1, 2]", "(1, 2)", True),
    ("1, 2", "1, 3", True),
    ("5 \\text{ or } 6", "6", True),
    ("(2, 5)", "(5, 2)", True),
    (r"\pm 2", "2", True),
    ("12 maybe 18", "18", True),
    ("foo@@ 18", "18", True),
    (r"\infty", "18", True),
    (r"\frac{1}{0}", "18", True),
    (r"\text{I am not sure}", "18", True),
    ("\ud83d", "18", True),
    ("5\x00", "5", True),
]


@pytest.mark.parametrize(("candidate", "answer", "algebra"), EQUAL)
def test_equal_answers_pass(verifier, candidate, answer, algebra):
    assert quick_match(candidate, answer) is (None if algebra else True)
    verdict = check(verifier, candidate, answer)
    assert verdict == Verdict(True, 1.0, "equal to the gold answer", candidate.strip())


@pytest.mark.parametrize(("candidate", "answer", "algebra"), UNEQUAL)
def test_unequal_answers_fail(verifier, candidate, answer, algebra):
    assert quick_match(candidate, answer) is (None if algebra else False)
    verdict = check(verifier, candidate, answer)
    assert (verdict.passed, verdict.score, verdict.extracted) == (False, 0.0, candidate)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed {\frac{1}{2}} done", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x : x > 0\right.}", r"\left\{x : x > 0\right."),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{1} and \boxed{2", None),
        ("5", None),
        (r"\boxed 5", None),
    ],
)
def test_the_last_box_is_the_answer(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no final answer"),
        ("the answer is 18", "no \\boxed{} in the final turn"),
        ("\\boxed{18", "unclosed \\boxed{ in the final turn"),
        ("\\boxed{ }", "empty \\boxed{} in the final turn"),
        (box("1" * 3000), "longer than 2000 characters"),
    ],
)
def test_texts_without_a_usable_answer_fail_with_the_reason(verifier, text, reason):
    verdict = verifier.verify_many([text], [gold("18")])[0]
    assert (verdict.passed, verdict.score, verdict.reason) == (False, 0.0, reason)


def test_canonical_spelling_keeps_what_spaces_keep_apart():
    assert canonical("1 2") != canonical("12")
    assert canonical(r"1 \\ 2") == canonical(r"1\\2") != canonical(r"1\2")


def test_verdicts_come_in_order_and_repeat(verifier):
    candidates = ["18", r"\sqrt{8}", "17", r"\sqrt{7}", r"\sqrt{8}", "no"] * 3
    problems = [gold(a) for a in ["18", r"2\sqrt{2}"] * 9]
    texts = [box(c) for c in candidates]
    verdicts = verifier.verify_many(texts, problems)
    assert [v.extracted for v in verdicts] == candidates
    assert [v.passed for v in verdicts] == [True, True, False, False, False, False] * 3
    assert verifier.verify_many(texts, problems) == verdicts
    with MathVerifier(workers=3) as several:
        assert several.verify_many(texts, problems) == verdicts


def test_plain_numbers_start_no_process():
    with MathVerifier() as fresh:
        fresh.verify_many([box("17"), box("18"), "none", None], [gold("18")] * 4)
        assert fresh._pool.pids() == []
        assert check(fresh, "x+x", "2x").passed
        assert len(fresh._pool.pids()) == 1


def test_a_hanging_comparison_is_killed_and_the_next_goes_on(hasty):
    check(hasty, "x", "2x")
    (pid,) = hasty._pool.pids()
    start = time.monotonic()
    problems = [gold("2x"), gold("2x"), gold("2x")]
    verdicts = hasty.verify_many([box("x+x"), box(HANG), box("x+x+0")], problems)
    assert time.monotonic() - start < 10
    assert [v.passed for v in verdicts] == [True, False, True]
    assert verdicts[1].reason == "timed out after 1 s"
    assert hasty._pool.pids() != [pid]
    assert not Path(f"/proc/{pid}").exists()


def test_without_the_limit_the_same_comparison_still_runs():
    """Negative control: what makes the hanging comparison end is the limit."""
    with MathVerifier(timeout_s=60, workers=1) as patient:
        check(patient, "x+x", "2x")
        thread = threading.Thread(target=check, args=(patient, HANG, "2x"))
        thread.start()
        thread.join(timeout=3)
        assert thread.is_alive()
        patient._pool._workers[0]._timeout_s = 2.0  # for the second try, by a new process
        for pid in patient._pool.pids():
            os.kill(pid, signal.SIGKILL)
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_a_hanging_gold_answer_raises(hasty):
    with pytest.raises(VerifierError, match=r"bad: .*timed out after 1 s"):
        hasty.verify_many([box("x")], [gold("(" * 500 + "1" + ")" * 500, "bad")])


def test_a_gold_answer_that_was_accepted_ends_no_run_later(hasty):
    slow = gold(r"\sqrt{2+" * 5 + "2" + "}" * 5, "slow")
    assert hasty.unusable([slow]) == {}
    hasty._pool._workers[0]._timeout_s = 1e-6  # as if the machine were busy
    (verdict,) = hasty.verify_many([box("x")], [slow])
    assert not verdict.passed


def test_it_works_in_threads_and_under_asyncio(verifier):
    async def several() -> list[list[Verdict]]:
        calls = [asyncio.to_thread(verifier.verify_many, [box(f"x+{i}")], [gold(f"{i}+x")]) for i in range(8)]
        return await asyncio.gather(*calls)

    assert all(verdicts[0].passed for verdicts in asyncio.run(several()))

    async def on_the_loop() -> bool:
        return check(verifier, "x+x", "2x").passed

    assert asyncio.run(on_the_loop())


def test_a_dead_process_is_replaced(verifier):
    check(verifier, "x+x", "2x")
    for pid in verifier._pool.pids():
        os.kill(pid, signal.SIGKILL)
    assert check(verifier, "x+x+x", "3x").passed


def test_close_ends_the_processes_and_may_be_called_twice():
    verifier = MathVerifier(workers=1)
    check(verifier, "x+x", "2x")
    (pid,) = verifier._pool.pids()
    verifier.close()
    verifier.close()
    assert not Path(f"/proc/{pid}").exists()
    assert check(verifier, "x+x", "2x").passed
    verifier.close()


def test_processes_are_limited_in_memory_and_load_no_torch(verifier):
    check(verifier, "x+x", "2x")
    (pid,) = verifier._pool.pids()
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    assert str(MEMORY_BYTES) in next(line for line in limits if line.startswith("Max address space"))
    assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_an_unusable_gold_answer_raises_and_is_listed_beforehand(verifier):
    bad, good = gold(r"2007 + \frac\pi 2", "bad"), gold("2x", "good")
    with pytest.raises(VerifierError, match=r"bad: .*math-verify can't read it"):
        verifier.verify_many([box("x+x"), box("5")], [good, bad])
    assert list(verifier.unusable([good, bad, gold("5"), gold("x" * 3000, "long")])) == ["bad", "long"]
    assert check(verifier, bad.answer, bad.answer).passed


def test_a_script_without_a_main_guard_can_use_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import threading\n"
        "from gtpo.tasks.problems import Problem\n"
        "from gtpo.tasks.verifiers.math import MathVerifier\n"
        "verifier = MathVerifier()\n"
        "def run():\n"
        "    print(verifier.verify_many(['\\\\boxed{x+x}'], [Problem('p', '?', '2x')])[0].passed)\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_arguments_are_checked():
    with pytest.raises(ConfigError, match="timeout_s=0"):
        MathVerifier(timeout_s=0)
    with pytest.raises(ConfigError, match="workers=0"):
        MathVerifier(workers=0)
    with pytest.raises(ValueError, match="2 texts but 1 problems"):
        MathVerifier().verify_many(["", ""], [gold("1")])


def test_verifiers_are_found_by_domain():
    assert isinstance(get_verifier("math"), MathVerifier)
    with pytest.raises(ConfigError, match="unknown verifier 'chess'; available: auto, math"):
        get_verifier("chess")


@pytest.mark.parametrize("name", ["gsm8k_test", "svamp", "math_lv35_train_2k"])
def test_real_gold_answers_pass_against_themselves_and_fail_when_perturbed(shared_data, name):
    problems = load_problems(shared_data / f"{name}.jsonl", limit=500)
    with MathVerifier() as verifier:
        assert verifier.unusable(problems) == {}
        same = verifier.verify_many([box(p.answer) for p in problems], problems)
        other = verifier.verify_many([box(f"{p.answer} + 1") for p in problems], problems)
    assert [p.id for p, v in zip(problems, same, strict=True) if not v.passed] == []
    assert [p.id for p, v in zip(problems, other, strict=True) if v.passed] == []


def test_any_of_several_aliases_passes_and_each_must_be_readable():
    problem = Problem("p", "?", "\\frac12", extras={"aliases": ["\\frac12", "x+1"]})
    broken = Problem("q", "?", "3", extras={"aliases": ["3", "\\qquad"]})
    other = Problem("r", "?", "4")
    with MathVerifier() as verifier:
        texts = ["\\boxed{1+x}", "\\boxed{0.5}", "\\boxed{4}", "\\boxed{3}", None]
        verdicts = verifier.verify_many(texts, [problem, problem, other, problem, problem])
        assert [verdict.passed for verdict in verdicts] == [True, True, True, False, False]
        assert list(verifier.unusable([problem, broken, other])) == ["q"]
