from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo.errors import VerifierError
from gtpo.tasks.problems import Problem, load_problems
from gtpo.tasks.verifiers import Verdict
from gtpo.tasks.verifiers.choice import ChoiceVerifier

QUESTION = "Where is Portland?\n(A) maine\n(B) boston\n(C) New York.\n(D) an ocean\n(E) an ocean"
VERIFIER = ChoiceVerifier()


def gold(answer: str, question: str = QUESTION, **extras: object) -> Problem:
    return Problem("p", question, answer, "commonsense", extras)


def check(text: str | None, problem: Problem) -> Verdict:
    return VERIFIER.verify_many([text], [problem])[0]


def box(answer: str) -> str:
    return f"Hence \\boxed{{{answer}}}."


# What stands in the box, and the letter it is read as.
LETTERS = [
    ("A", "A"),
    ("a", "A"),
    ("(A)", "A"),
    ("A.", "A"),
    ("a)", "A"),
    ("A:", "A"),
    ("$A$", "A"),
    (r"\(A\)", "A"),
    (r"\text{A}", "A"),
    (r"\text{(A)}", "A"),
    (r"(\text{A})", "A"),
    (r"\left(A\right)", "A"),
    (r"\mathbf{A}", "A"),
    (r"\textbf{ (A) }", "A"),
    (r"{\bf A}", "A"),
    ("option A", "A"),
    ("Option (A)", "A"),
    ("Answer: A", "A"),
    ("**A**", "A"),
    ("[A]", "A"),
    ("**Answer:** A", "A"),
    ("A, maine", "A"),
    ("[A] maine", "A"),
    ('"maine"', "A"),
    ("“Maine”", "A"),
    ("*maine*!", "A"),
    ("A) maine", "A"),
    ("(A) maine", "A"),
    ("(A) Maine.", "A"),
    ("A. maine", "A"),
    ("A: maine", "A"),
    ("A - maine", "A"),
    (r"\text{(A)}\ \text{maine}", "A"),
    (r"\textbf{(A)}~maine", "A"),
    ("maine", "A"),
    ("Maine.", "A"),
    (r"\text{New\ York}", "C"),
    ("new   york", "C"),
    ("C) New York", "C"),
    ("E) an ocean", "E"),
]
NO_CHOICE = [
    ("A or B", "more than one letter"),
    ("A, B", "more than one letter"),
    ("(A) and (B)", "more than one letter"),
    ("A/B/C", "more than one letter"),
    ("A B", "more than one letter"),
    ("A) boston", "A with the text of B"),
    ("(B) New York", "B with the text of C"),
    ("A) paris", "A with a text that is not its own"),
    ("(A) maine or (B) boston", "A with a text that is not its own"),
    ("F", "F is not among the options A, B, C, D, E"),
    ("(Z)", "Z is not among the options A, B, C, D, E"),
    ("F) paris", "F is not among the options A, B, C, D, E"),
    ("an ocean", "the text of more than one option (D, E)"),
    ("AB", "neither the letter nor the text of an option"),
    ("maine or boston", "neither the letter nor the text of an option"),
    ("A maine", "neither the letter nor the text of an option"),
    ("the first one", "neither the letter nor the text of an option"),
    ("А", "neither the letter nor the text of an option"),  # Cyrillic
    (r"\text{}", "neither the letter nor the text of an option"),
]
WORDS = [
    ("yes", "yes"),
    ("Yes.", "yes"),
    ("YES", "yes"),
    (r"\text{yes}", "yes"),
    ("yes!", "yes"),
    ("**No!**", "no"),
    ("Answer: yes", "yes"),
    ("The final answer is no.", "no"),
    ('"Yes"', "yes"),
    ("`no`", "no"),
    (r"\textbf{No}", "no"),
    ("True", "yes"),
    ("false", "no"),
]


@pytest.mark.parametrize(("answer", "letter"), LETTERS)
def test_spellings_of_a_letter_pass_and_the_other_letters_fail(answer, letter):
    for other in "ABCDE":
        right = other == letter
        expected = Verdict(right, float(right), f"{letter} is {'right' if right else 'wrong'}", answer.strip())
        assert check(box(answer), gold(other)) == expected


@pytest.mark.parametrize(("answer", "reason"), NO_CHOICE)
def test_what_is_no_choice_fails_with_the_reason(answer, reason):
    for letter in "ABCDE":
        assert check(box(answer), gold(letter)) == Verdict(False, 0.0, reason, answer)


@pytest.mark.parametrize(("answer", "word"), WORDS)
@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.title])
def test_yes_and_no(answer, word, spelled):
    for right, other in (("yes", "no"), ("true", "false")):
        problem = gold(spelled(right), "Is it?\nOptions:\n- Yes\n- No")
        assert check(box(answer), problem).passed == (word == "yes")
        assert check(box(answer), replace(problem, answer=spelled(other))).passed == (word == "no")


@pytest.mark.parametrize(
    "answer", ["yes, because it is", "yes and no", "not no", "A", "y", "yes?", "yes! no!", "maybe", "да"]
)
def test_only_the_word_alone_is_yes_or_no(answer):
    for word in ("yes", "no"):
        assert check(box(answer), gold(word, "Is it?")) == Verdict(False, 0.0, "neither yes nor no alone", answer)


def test_yes_and_no_as_texts_of_options_are_letters():
    problem = gold("B", "Is it?\n(A) yes\n(B) no\n(C) A")
    assert check(box("no"), problem).passed
    assert not check(box("false"), problem).passed
    assert check(box("b) No"), problem).passed
    assert check(box("B"), replace(problem, answer="no")).passed
    assert not check(box("yes"), problem).passed
    assert check(box("A"), problem).reason == "A is wrong"  # a letter, though it is the text of C


def test_the_field_choices_goes_before_the_lines_of_the_question():
    assert check(box("Salem"), gold("B", choices=["Bangor", "Salem"])).passed
    assert check(box("C"), gold("B", choices=["Bangor", "Salem"])).reason == "C is not among the options A, B"
    assert check(box("boston"), gold("B", choices=None)).passed


def test_options_are_the_last_lines_that_count_up_from_a():
    question = "(A) is a letter.\n(B) too.\nWhich?\n(A) one\n(B) two\n  (C)  three\n(F) none of these"
    assert check(box("two"), gold("B", question)).passed
    assert check(box("three"), gold("C", question)).passed
    assert not check(box("too."), gold("B", question)).passed
    assert VERIFIER.unusable([gold("F", question)]) != {}


@pytest.mark.parametrize(
    ("text", "passed", "reason"),
    [
        (None, False, "no final answer"),
        ("A", False, "no \\boxed{} in the final turn"),
        ("The answer is (A) maine.", False, "no \\boxed{} in the final turn"),
        ("\\boxed{A", False, "unclosed \\boxed{ or <answer> in the final turn"),
        ("<answer>A", False, "unclosed \\boxed{ or <answer> in the final turn"),
        ("\\boxed{ }", False, "empty \\boxed{} or <answer> in the final turn"),
        ("<answer></answer>", False, "empty \\boxed{} or <answer> in the final turn"),
        ("\\boxed{B} no, \\boxed{A}", True, "A is right"),
        ("\\boxed{A} no, \\boxed{B}", False, "B is wrong"),
        ("<answer>A</answer>", True, "A is right"),
        ("<ANSWER>\n(A) maine\n</ANSWER>", True, "A is right"),
        ("\\boxed{B} <answer>A</answer>", True, "A is right"),
        ("<answer>B</answer> \\boxed{A}", True, "A is right"),
        ("<answer>A</answer> <answer>B</answer>", False, "B is wrong"),
        ("<answer>so \\boxed{A}</answer>", True, "A is right"),
        ("\\boxed{A} <answer>B", False, "unclosed \\boxed{ or <answer> in the final turn"),
    ],
)
def test_the_box_or_block_that_opens_last_is_the_answer(text, passed, reason):
    verdict = check(text, gold("A"))
    assert (verdict.passed, verdict.reason) == (passed, reason)
    assert VERIFIER.has_answer(text or "", gold("A")) == (verdict.extracted not in (None, ""))


@pytest.mark.parametrize(
    ("answer", "question", "why"),
    [
        ("F", QUESTION, "F is not among the options A, B, C, D, E"),
        ("maine", QUESTION, "'maine' is neither a letter nor yes or no"),
        ("A or B", QUESTION, "'A or B' is neither a letter nor yes or no"),
        ("", QUESTION, "'' is neither a letter nor yes or no"),
        ("A", "Is it?", "'A' is a letter, but there are no `choices` and no lines `(A) ...`"),
        ("maybe", "Is it?", "'maybe' is neither a letter nor yes or no"),
    ],
)
def test_unusable_gold_answers_are_listed_and_raise(answer, question, why):
    bad = gold(answer, question)
    assert VERIFIER.unusable([bad, replace(gold("A"), id="q")]) == {"p": why}
    with pytest.raises(VerifierError, match=r"gold answers that can't be used: 1 \(p: "):
        check(None, bad)


@pytest.mark.parametrize("answer", ["A", "(A)", "a.", " A ", "yes", "No", "TRUE", "false"])
def test_usable_gold_answers(answer):
    assert VERIFIER.unusable([gold(answer)]) == {}


def test_classes_are_the_choices():
    answers = ["A", "maine", "(B)", "A) maine", "boston", "A or B", "a  or b", "neither", "yes", "true"]
    assert VERIFIER.classes(answers, gold("A")) == [0, 0, 1, 0, 1, 2, 2, 3, 4, 4]
    assert VERIFIER.classes(["yes", "No", "True", "A"], gold("no", "Is it?")) == [0, 1, 0, 2]
    assert VERIFIER.classes([], gold("A")) == []


def test_arguments_of_different_length_are_refused():
    with pytest.raises(ValueError, match="2 texts but 1 problems"):
        VERIFIER.verify_many(["", ""], [gold("A")])
    VERIFIER.close()
    VERIFIER.close()


PIECES = st.lists(st.sampled_from(["A", "(B)", "maine", "\\text{", "{", "}", "$", ".", " or ", "yes", "\\(", "~"]))
ANSWERS = st.one_of(st.text(max_size=30), PIECES.map("".join))


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.none(), ANSWERS, ANSWERS.map(box), ANSWERS.map("<answer>{}</answer>".format)))
def test_no_text_raises_and_every_verdict_says_why(text):
    for problem in (gold("A"), gold("yes", "Is it?")):
        verdict = check(text, problem)
        assert verdict.reason
        assert verdict.score == float(verdict.passed)
        assert VERIFIER.has_answer(text or "", problem) == bool(verdict.extracted)


@settings(max_examples=100, deadline=None)
@given(answers=st.lists(st.one_of(ANSWERS, st.sampled_from([a for a, _ in LETTERS + NO_CHOICE])), max_size=8))
def test_answers_of_one_class_get_the_same_verdict(answers):
    classes = VERIFIER.classes(answers, gold("A"))
    assert sorted(set(classes)) == list(range(len(set(classes))))
    passed: dict[int, bool] = {}
    for number, answer in zip(classes, answers, strict=True):
        verdict = check(f"<answer>{answer}</answer>", gold("A"))
        if verdict.extracted == answer:
            assert passed.setdefault(number, verdict.passed) == verdict.passed


@settings(max_examples=100, deadline=None)
@given(
    choices=st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=8),
    spelling=st.sampled_from(["{}", "({})", "{}.", "{})", "\\text{{{}}}"]),
    data=st.data(),
)
def test_the_gold_letter_passes_whatever_the_options_are(choices, spelling, data):
    right, other = data.draw(st.permutations(range(len(choices))))[:2]
    problem = gold("ABCDEFGH"[right], "?", choices=choices)
    assert check(box(spelling.format("ABCDEFGH"[right])), problem).passed
    assert not check(box(spelling.format("ABCDEFGH"[other])), problem).passed


@pytest.mark.parametrize("name", ["commonsenseqa_train_1k", "strategyqa_train", "bbh_commonsense"])
def test_real_gold_answers_pass_and_others_fail(shared_data, name):
    problems = load_problems(shared_data / f"{name}.jsonl")
    opposite = {"yes": "No", "no": "Yes", "a": "B"}
    others = [opposite.get(p.answer.strip("()").lower(), "A") for p in problems]
    assert VERIFIER.unusable(problems) == {}
    same = VERIFIER.verify_many([box(p.answer) for p in problems], problems)
    wrong = VERIFIER.verify_many([box(other) for other in others], problems)
    assert [p.id for p, v in zip(problems, same, strict=True) if not v.passed] == []
    assert [p.id for p, v in zip(problems, wrong, strict=True) if v.passed or not v.reason.endswith("is wrong")] == []


def test_real_options_pass_by_their_text_unless_two_are_the_same(shared_data):
    problems = load_problems(shared_data / "commonsenseqa_train_1k.jsonl")
    bare = [replace(p, extras={}) for p in problems]
    texts = [box(p.extras["answer_text"]) for p in problems]
    by_field, by_line = VERIFIER.verify_many(texts, problems), VERIFIER.verify_many(texts, bare)
    assert by_field == by_line
    failed = [p for p, v in zip(problems, by_field, strict=True) if not v.passed]
    assert all(p.extras["choices"].count(p.extras["answer_text"]) > 1 for p in failed)
    assert len(failed) < 0.02 * len(problems)
