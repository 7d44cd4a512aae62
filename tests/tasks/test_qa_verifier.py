import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo.errors import ConfigError, VerifierError
from gtpo.tasks.problems import Problem, load_problems
from gtpo.tasks.verifiers import Verdict
from gtpo.tasks.verifiers.qa import MAX_CHARACTERS, QAVerifier, normalised, token_f1

VERIFIER = QAVerifier()


def gold(answer: str, *aliases: str) -> Problem:
    return Problem("p", "?", answer, "qa", {"aliases": list(aliases)} if aliases else {})


def box(answer: str) -> str:
    return f"Hence \\boxed{{{answer}}}."


def check(answer: str, problem: Problem, verifier: QAVerifier = VERIFIER) -> Verdict:
    return verifier.verify_many([box(answer)], [problem])[0]


EQUAL = [
    ("William the Bastard", "William the Bastard"),
    ("william bastard", "William the Bastard"),
    ("the Soviet Union", "Soviet Union"),
    ("An  apple\n a day.", "apple day"),
    ("U.S.", "us"),
    ("A.C. Milan Primavera", "AC Milan Primavera"),
    ("Julia Louis-Dreyfus", "Julia LouisDreyfus"),
    ("Argentina's occupied factories", "Argentina’s occupied factories"),
    ("1914-1918", "1914–1918"),
    ("“Heroes”", '"Heroes"'),
    ("Conde\u0301 Nast", "Cond\u00e9 Nast"),
    (r"\text{Paris}", "Paris"),
    (r"\text{New York}", "New York"),
    (r"\textit{Secret\ of the Wings}", "Secret of the Wings"),
    ("$1901$", "1901"),
    (r"US\$10.1 billion", "US$10.1 billion"),
    (r"Simon \& Schuster", "Simon & Schuster"),
    ("The Hague", "Hague, The"),
    ("The The", "the the"),
    ("?", "?"),
    ("10.1", "101"),
    ("YES", "yes"),
]
UNEQUAL = [
    ("Paris, France", "Paris", 2 / 3),
    ("Paris France Europe", "Paris", 1 / 2),
    ("Lyon", "Paris", 0.0),
    ("Conde Nast", "Condé Nast", 1 / 2),
    ("12 April 1956", "April 12, 1956", 1.0),
    ("two", "2", 0.0),
    ("1,901 people", "1901", 2 / 3),
    ("The", "The The", 2 / 3),
    ("!", "?", 0.0),
    ("the", "a", 0.0),
    ("yes", "no", 0.0),
    ("yes he did", "yes", 0.0),
    ("yes", "yes he did", 0.0),
    ("noanswer", "no answer", 0.0),
    ("not no", "no", 0.0),
    ("new new york", "new york york", 2 / 3),
    (r"\text{}", "Paris", 0.0),
]


@pytest.mark.parametrize(("answer", "right"), EQUAL)
def test_equal_answers_pass(answer, right):
    assert check(answer, gold(right)) == Verdict(True, 1.0, "equal to the gold answer or an alias", answer)


@pytest.mark.parametrize(("answer", "right", "score"), UNEQUAL)
def test_unequal_answers_fail_and_score_their_f1(answer, right, score):
    verdict = check(answer, gold(right))
    assert not verdict.passed
    assert verdict.score == pytest.approx(score)
    assert verdict.reason == f"not equal to the gold answer or an alias (F1 {score:.2f})"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The Cat, the HAT & a bat!", "cat hat bat"),
        ("anthem of Athens", "anthem of athens"),
        ("the-end", "theend"),
        ("a", "a"),
        ("…", "…"),
        (" \t ", ""),
    ],
)
def test_normalised_text(text, tokens):
    assert normalised(text) == tokens


def test_f1_by_hand():
    assert token_f1("b c d", "b c e f") == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert token_f1("b b c", "b c c") == pytest.approx(2 / 3)
    assert token_f1("b", "c") == token_f1("", "c") == token_f1("", "") == 0
    assert token_f1("yes", "yes") == 1


def test_the_best_alias_counts():
    problem = gold("William the Conqueror", "William the Bastard", "William I")
    assert check("william i", problem).passed
    assert check("William the Conqueror", problem).passed
    assert check("William I of England", problem).score == pytest.approx(2 * 2 / 6)
    assert not check("William", problem).passed


def test_with_a_least_f1_a_near_answer_passes():
    near = QAVerifier(min_f1=0.6)
    assert check("Paris, France", gold("Paris"), near) == Verdict(
        True, 2 / 3, "F1 0.67, enough for 0.6", "Paris, France"
    )
    verdict = check("Paris France Europe", gold("Paris"), near)
    assert verdict == Verdict(False, 0.5, "F1 0.50, not enough for 0.6", "Paris France Europe")
    assert check("Paris", gold("Paris"), near).reason == "equal to the gold answer or an alias"
    assert not check("yes it is", gold("yes"), QAVerifier(min_f1=0.01)).passed
    assert check("12 April 1956", gold("April 12, 1956"), QAVerifier(min_f1=1)).passed


@pytest.mark.parametrize("min_f1", [0, -0.5, 1.01, float("nan")])
def test_the_least_f1_is_checked(min_f1):
    with pytest.raises(ConfigError, match="min_f1="):
        QAVerifier(min_f1=min_f1)


@pytest.mark.parametrize(
    ("text", "passed", "reason"),
    [
        (None, False, "no final answer"),
        ("Paris", False, "no \\boxed{} in the final turn"),
        ("\\boxed{Paris", False, "unclosed \\boxed{ or <answer> in the final turn"),
        ("\\boxed{}", False, "empty \\boxed{} or <answer> in the final turn"),
        ("\\boxed{Lyon} or rather \\boxed{Paris}", True, "equal to the gold answer or an alias"),
        ("<answer> Paris </answer>", True, "equal to the gold answer or an alias"),
        ("\\boxed{Lyon}<answer>Paris</answer>", True, "equal to the gold answer or an alias"),
        ("<answer>Paris</answer>\\boxed{Lyon}", False, "not equal to the gold answer or an alias (F1 0.00)"),
        (box("Paris " * 60), False, "longer than 300 characters"),
    ],
)
def test_texts_without_a_usable_answer_fail_with_the_reason(text, passed, reason):
    verdict = VERIFIER.verify_many([text], [gold("Paris")])[0]
    assert (verdict.passed, verdict.reason) == (passed, reason)
    assert VERIFIER.has_answer(text or "", gold("Paris")) == bool(verdict.extracted)


def test_an_answer_that_lists_all_it_can_think_of_is_too_long():
    names = ", ".join(f"city {i}" for i in range(60))
    assert len(names) > MAX_CHARACTERS
    assert check(f"{names}, Paris", gold("Paris"), QAVerifier(min_f1=0.01)) == Verdict(
        False, 0.0, "longer than 300 characters", f"{names}, Paris"
    )


def test_unusable_problems_are_listed_and_raise():
    problems = [
        Problem("blank", "?", "  "),
        Problem("text", "?", "Paris", extras={"aliases": "Paris"}),
        Problem("number", "?", "Paris", extras={"aliases": ["Paris", 3]}),
        Problem("alias", "?", "", extras={"aliases": ["Paris"]}),
        Problem("none", "?", "Paris", extras={"aliases": None}),
        Problem("the", "?", "The The"),
    ]
    not_texts = "`aliases` is not a list of texts"
    found = {"blank": "the gold answer is blank", "text": not_texts, "number": not_texts}
    assert VERIFIER.unusable(problems) == found
    shown = r"gold answers that can't be used: 3 \(blank: the gold answer is blank; text: "
    with pytest.raises(VerifierError, match=shown):
        VERIFIER.verify_many([None] * 6, problems)


def test_classes_are_normalised_texts_and_know_no_aliases():
    answers = ["Paris", "paris.", r"\text{Paris}", "Paris, France", "the City of Light", "City of Light", "Lyon"]
    assert VERIFIER.classes(answers, gold("Paris", "City of Light")) == [0, 0, 0, 1, 2, 2, 3]
    assert VERIFIER.classes([], gold("Paris")) == []


def test_arguments_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 texts but 1 problems"):
        VERIFIER.verify_many(["", ""], [gold("A")])
    VERIFIER.close()
    VERIFIER.close()


TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["the", "Paris", " ", "\\text{", "}", ".", "é"]), max_size=12).map("".join),
)


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.none(), TEXTS, TEXTS.map(box), TEXTS.map("<answer>{}</answer>".format)))
def test_no_text_raises_and_every_verdict_says_why(text):
    for verifier in (VERIFIER, QAVerifier(0.5)):
        verdict = verifier.verify_many([text], [gold("the Paris", "é")])[0]
        assert verdict.reason
        assert 0 <= verdict.score <= 1
        assert verdict.score == 1 or not verdict.passed or verdict.score >= 0.5


@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), min_size=1, max_size=6))
def test_a_gold_answer_passes_in_any_case_and_with_punctuation(words):
    problem = gold(" ".join(words))
    assert check(" ".join(words), problem).passed
    assert check("“" + ",  ".join(words) + "!”", problem).passed
    assert token_f1(normalised(" ".join(words)), normalised(" ".join(reversed(words)))) in (0, pytest.approx(1))


@settings(max_examples=100, deadline=None)
@given(answers=st.lists(TEXTS, max_size=8))
def test_answers_of_one_class_get_the_same_verdict(answers):
    problem = gold("the Paris", "é")
    verdicts: dict[int, tuple[bool, float]] = {}
    for number, answer in zip(VERIFIER.classes(answers, problem), answers, strict=True):
        verdict = VERIFIER.verify_many([f"<answer>{answer}</answer>"], [problem])[0]
        if verdict.extracted == answer:
            assert verdicts.setdefault(number, (verdict.passed, verdict.score)) == (verdict.passed, verdict.score)


def test_real_gold_answers_pass_and_those_of_other_problems_fail(shared_data):
    problems = load_problems(shared_data / "multihop_qa_train_1k.jsonl")
    assert VERIFIER.unusable(problems) == {}
    names = [{normalised(a) for a in [p.answer, *p.extras.get("aliases", [])]} for p in problems]
    same = VERIFIER.verify_many([box(p.answer) for p in problems], problems)
    assert [p.id for p, v in zip(problems, same, strict=True) if (v.passed, v.score) != (True, 1.0)] == []
    shifted = [*range(1, len(problems)), 0]
    others = VERIFIER.verify_many([box(problems[i].answer) for i in shifted], problems)
    told_apart = [v for v, i, own in zip(others, shifted, names, strict=True) if not names[i] & own]
    assert len(told_apart) > 900
    assert not any(v.passed for v in told_apart)
