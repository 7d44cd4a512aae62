"""Pairs and texts that once came out wrong, from the shared folder of problems: how each of them is judged."""

from __future__ import annotations

import json

import pytest

from gtpo.sandbox import Limits
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers.code import CodeVerifier
from gtpo.tasks.verifiers.math import MathVerifier

DECIDED_OTHERWISE = {
    ("73", "Final Answer: **73**"): "only a box is read",
    (r"\frac{1}{2}", r"\fbox{$\frac{1}{2}$}"): "only a box is read",
    ("5", r"\boxed{5} % comment \boxed{6"): "the last box that opens is the answer, closed or not",
    ("3k+1", "3n+1"): "letters are equal in name only: 5m is not 5n",
    ("n=3k", "n = 3m"): "letters are equal in name only",
}
"""Gold and answer of the cases that are judged otherwise than they want; the verifiers' documentation says why."""


@pytest.fixture(scope="module")
def cases(shared_data):
    path = shared_data / "verifier_cases.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def wrong(cases, verdicts):
    """The cases that come out otherwise than they want, apart from those decided otherwise."""
    return [
        (case["kind"], case["gold"], case["answer"], verdict.reason)
        for case, verdict in zip(cases, verdicts, strict=True)
        if verdict.passed != case["want"] and (case["gold"], case["answer"]) not in DECIDED_OTHERWISE
    ]


@pytest.mark.parametrize("name", ["math", "chop", "units", "more", "universal"])
def test_pairs_of_mathematics(cases, name):
    chosen = [case for case in cases if case["set"] == name]
    problems = [Problem(str(i), "?", case["gold"]) for i, case in enumerate(chosen)]
    texts = [c["answer"] if c["kind"] == "p2-text" else f"\\boxed{{{c['answer']}}}" for c in chosen]
    with MathVerifier() as verifier:
        assert verifier.unusable(problems) == {}
        assert wrong(chosen, verifier.verify_many(texts, problems)) == []


def test_right_programs_in_usual_idioms(cases):
    chosen = [case for case in cases if case["set"] == "io_right"]
    problems = [_program_problem(case) for case in chosen]
    verifier = CodeVerifier(limits=Limits(cpu_s=4.0, wall_s=20.0))
    try:
        assert wrong(chosen, verifier.verify_many([case["answer"] for case in chosen], problems)) == []
    finally:
        verifier.close()


def _program_problem(case):
    kind = case["kind"].partition(":")[0]
    extras = {"answer_kind": "tests" if kind == "assert" else "io", "prelude": "" if kind == "stdin0" else "import sys"}
    return Problem(case["kind"], "?", case["gold"], "code", extras)
