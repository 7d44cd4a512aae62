"""What is said where success is too rare; what becomes of rollouts that went nowhere is in the trainer's tests."""

from __future__ import annotations

import pytest

from gtpo.training.loss_policy import FailureWatch
from gtpo.training.run import train


def test_it_speaks_once_and_only_after_some_steps():
    watch = FailureWatch("Mend it.")
    said = [watch.note(0.9) for _ in range(9)]
    assert [text is not None for text in said] == [False] * 4 + [True] + [False] * 4
    assert "every rollout failed in 90% of the groups. Mend it." in said[4]


def test_it_is_silent_if_nothing_is_known_against_the_settings():
    assert [FailureWatch(None).note(1.0) for _ in range(6)] == [None] * 6


def test_it_is_silent_where_half_of_the_groups_have_a_success():
    watch = FailureWatch("Mend it.")
    assert [watch.note(share) for share in (1.0, 0.0, 1.0, 0.0, 0.5, 0.5)] == [None] * 6


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
