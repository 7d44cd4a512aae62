import re
from fractions import Fraction

import pytest

from gtpo.tasks.problems import Problem, load_problems
from gtpo.tasks.worked_solutions import (
    Skipped,
    SkipReason,
    WorkedSolution,
    WorkedStep,
    agrees,
    evaluate,
    parse_solution,
    parse_solutions,
)


def problem(solution: object, answer: str = "72", name: str = "p") -> Problem:
    return Problem(name, "How many?", answer, extras={"solution": solution})


CLIPS = "Natalia sold 48/2 = <<48/2=24>>24 clips.\nThat is 48+24 = <<48+24=72>>72 altogether.\n#### 72"


def test_each_calculation_becomes_a_step():
    solution = parse_solution(problem(CLIPS))
    assert solution == WorkedSolution(
        problem(CLIPS),
        (
            WorkedStep("Natalia sold 48/2 = 24 clips.", "48/2", "24", "Natalia sold 48/2 = "),
            WorkedStep("That is 48+24 = 72 altogether.", "48+24", "72", "That is 48+24 = "),
        ),
        "",
        "72",
    )


def test_prose_stands_before_the_next_step_or_closes():
    text = "Let S be it.\n\nIt is <<70+2=72>>72 now.\nSo S is 72.\nDone.\n#### 72"
    solution = parse_solution(problem(text))
    assert isinstance(solution, WorkedSolution)
    assert [step.text for step in solution.steps] == ["Let S be it.\n\nIt is 72 now."]
    assert solution.steps[0].lead == "Let S be it.\n\nIt is "
    assert solution.closing == "So S is 72.\nDone."


def test_a_sentence_with_two_calculations_is_cut_behind_the_first_value():
    text = "He has 2*3=<<2*3=6>>6 red and 6*11=<<6*11=66>>66 blue, in all <<6+66=72>>72 balls.\n#### 72"
    solution = parse_solution(problem(text))
    assert isinstance(solution, WorkedSolution)
    texts = [step.text for step in solution.steps]
    assert texts == ["He has 2*3=6", " red and 6*11=66", " blue, in all 72 balls."]


def test_thousands_separators_go_and_the_answer_may_have_them():
    text = "It is $<<1,000*7.5=7,500>>7,500.\n#### 7,500"
    solution = parse_solution(problem(text, answer="7500"))
    assert isinstance(solution, WorkedSolution)
    assert (solution.steps[0].expression, solution.steps[0].value) == ("1000*7.5", "7500")
    assert solution.steps[0].text == "It is $7,500."


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        (None, SkipReason.NO_SOLUTION),
        (" \n", SkipReason.NO_SOLUTION),
        ("It is <<70+2=72>>72.", SkipReason.NO_FINAL_ANSWER),
        ("It is <<70+2=72>>72.\n####", SkipReason.NO_FINAL_ANSWER),
        ("It is <<70+2=72>>72.\n#### 71", SkipReason.OTHER_ANSWER),
        ("It is 72.\n#### 72", SkipReason.NO_CALCULATION),
        ("It is <<70+2=72.\n#### 72", SkipReason.MALFORMED),
        ("It is 70+2=72>>72.\n#### 72", SkipReason.MALFORMED),
        ("It is <<70+<<2=72>>72.\n#### 72", SkipReason.MALFORMED),
        ("It is <<72>>72.\n#### 72", SkipReason.MALFORMED),
        ("It is <<70+2=>>72.\n#### 72", SkipReason.MALFORMED),
        ("It is <<70+=72>>72.\n#### 72", SkipReason.MALFORMED),
        ("It is <<70+x=72>>72.\n#### 72", SkipReason.MALFORMED),
        ("It is <<72/0=72>>72.\n#### 72", SkipReason.MALFORMED),
        ("It is <<__import__('os').getpid()=72>>72.\n#### 72", SkipReason.MALFORMED),
        ("It is <<70+3=72>>72.\n#### 72", SkipReason.DISAGREES),
        ("It is <<70+2=72>>72, <<1/3=0.34>>0.34.\n#### 72", SkipReason.DISAGREES),
    ],
)
def test_unusable_solutions_are_skipped_with_the_reason(solution, reason):
    result = parse_solution(problem(solution))
    assert isinstance(result, Skipped)
    assert (result.problem_id, result.reason) == ("p", reason)
    assert result.detail


def test_reasons_are_counted():
    problems = [problem(CLIPS, name="a"), problem("#### 72", name="b"), problem(None, name="c")]
    parsed = parse_solutions(problems)
    assert [s.problem.id for s in parsed.solutions] == ["a"]
    assert [s.problem_id for s in parsed.skipped] == ["b", "c"]
    assert parsed.skipped_by_reason == {SkipReason.NO_CALCULATION: 1, SkipReason.NO_SOLUTION: 1}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("48/2", 24),
        (".5*50", 25),
        ("+30-4", 26),
        ("-(2+3)*4", -20),
        ("0.1+0.2", "3/10"),
        ("2**3%5", 3),
        ("7//2", 3),
    ],
)
def test_expressions_are_computed_exactly(expression, value):
    assert evaluate(expression) == Fraction(value)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "2 +",
        "x",
        "f(2)",
        "2 < 3",
        "'a'",
        "True",
        "2j",
        "1e999",
        "9**9**9",
        "2**0.5",
        "1/0",
        "(" * 300 + ")" * 300,
    ],
)
def test_anything_but_arithmetic_is_refused(expression):
    with pytest.raises(ValueError, match=r"."):
        evaluate(expression)


@pytest.mark.parametrize(
    ("computed", "stated", "same"),
    [
        ("24", "24", True),
        ("24", "24.0", True),
        ("1/3", "0.33", True),
        ("2/3", "0.67", True),
        ("2/3", "0.66", True),
        ("-2/3", "-0.66", True),
        ("2/3", "0.65", False),
        ("1/3", "0.34", False),
        ("-1/3", "0.33", False),
        ("2/3", "1", False),
        ("24", "25", False),
    ],
)
def test_a_stated_value_may_be_rounded_or_cut_off_to_its_decimals(computed, stated, same):
    assert agrees(Fraction(computed), stated) is same


def test_real_solutions_parse_and_lose_no_prose(shared_data):
    problems = load_problems(shared_data / "gsm8k_train.jsonl")
    parsed = parse_solutions(problems)
    assert len(parsed.solutions) == 7378
    assert parsed.skipped_by_reason == {SkipReason.NO_CALCULATION: 95}
    assert sum(len(solution.steps) for solution in parsed.solutions) == 23716
    for solution in parsed.solutions:
        pieces = [*(step.text for step in solution.steps), solution.closing]
        prose = re.sub("<<.*?>>", "", solution.problem.extras["solution"]).partition("####")[0]
        assert "".join("".join(pieces).split()) == "".join(prose.split())
        assert all(step.text.startswith(step.lead) for step in solution.steps)
