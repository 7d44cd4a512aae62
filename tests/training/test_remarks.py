"""What a trainer says once where a run can't learn what it should."""

from __future__ import annotations

import pytest

from gtpo.training.remarks import Remarks
from gtpo.training.run import train
from gtpo.types import InvalidCall, StopReason, ToolCall, Trajectory, Turn

HARMFUL = {"algorithm": "gtpo", "zero_uniform_groups": False, "turn_rewards": True, "format_penalty": -0.1}


def step(all_failed=0.0, calls=2.0, invalid=0.0, **more):
    return {"groups/frac_all_failed": all_failed, "calls": calls, "invalid_calls": invalid, **more}


def test_rare_success_is_said_once_and_only_after_some_steps():
    remarks = Remarks(HARMFUL)
    said = [remarks.of(step(0.9)) for _ in range(9)]
    assert [bool(texts) for texts in said] == [False] * 4 + [True] + [False] * 4
    (text,) = said[4]
    assert "every rollout failed in 90% of the groups. Easier problems" in text
    assert text.endswith("set zero_uniform_groups true.")


def test_it_is_silent_if_nothing_is_known_against_the_settings():
    remarks = Remarks({"algorithm": "gtpo"})
    assert not any(remarks.of(step(1.0)) for _ in range(6))


def test_it_is_silent_where_half_of_the_groups_have_a_success():
    remarks = Remarks(HARMFUL)
    assert not any(remarks.of(step(share)) for share in (1.0, 0.0, 1.0, 0.0, 0.5, 0.5))


def rollout(*calls):
    return Trajectory((1,), (Turn("", (2,), tuple(calls)),), StopReason.ANSWER)


def test_where_no_call_reaches_a_tool_that_is_said_once_with_the_usual_reason():
    remarks = Remarks({}, ["calc", "look_up"])
    wrong = [rollout(InvalidCall("there is no tool for python")), rollout(InvalidCall("empty"), ToolCall("1"))]
    assert remarks.of(step(calls=2.0, invalid=1.9), wrong) == []
    (text,) = remarks.of(step(calls=2.0, invalid=2.0), [*wrong, wrong[0]])
    assert text.startswith("no call could be carried out (most often: there is no tool for python) in this step. ")
    assert text.endswith("does not know the tools (calc, look_up), a cold start teaches it (gtpo sft).")
    assert remarks.of(step(calls=2.0, invalid=2.0), wrong) == []


def test_a_step_without_any_call_is_named_and_one_without_tools_is_not():
    (text,) = Remarks({}, ["calc"]).of(step(calls=0.0))
    assert text.startswith("no rollout called a tool (calc).")
    assert Remarks({}).of(step(calls=0.0)) == []


@pytest.mark.parametrize(
    ("pass_or_fail", "more", "said"), [(True, {"score": 0.5}, 1), (True, {}, 0), (False, {"score": 0.5}, 0)]
)
def test_scores_that_are_not_rewarded_are_named(pass_or_fail, more, said):
    assert len(Remarks({}, pass_or_fail=pass_or_fail).of(step(**more))) == said


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, False),
        ({"zero_uniform_groups": False}, True),
        ({"zero_uniform_groups": False, "algorithm": "grpo"}, False),
    ],
)
def test_a_run_in_which_nothing_succeeds_says_so_where_it_matters(
    small_model, tiny_tokenizer, problems, sandbox, config, capfd, changes, warned
):
    settings = {"max_steps": 6, "max_turn_tokens": 2, "max_turns": 1, **changes}
    train(small_model, tiny_tokenizer, problems, config(**settings), sandbox=sandbox)
    assert ("every rollout failed" in capfd.readouterr().err) == warned
