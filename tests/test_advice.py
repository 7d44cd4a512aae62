from __future__ import annotations

from dataclasses import asdict

import pytest

from gtpo import functional as F
from gtpo.advice import where_groups_are_small, where_success_is_rare
from gtpo.credit_assignment import CreditSettings


@pytest.mark.parametrize(
    ("options", "turns", "expected"),
    [
        ({}, 7, []),
        ({}, 8, ["gamma^7 = 0.48"]),
        ({"gamma": 1.0}, 50, []),
        ({"alpha": 0.0}, 50, []),
        ({"gamma": 0.5}, 3, ["gamma^2 = 0.25"]),
        ({"turn_returns": False}, 8, []),
        ({"zero_uniform_groups": False}, 7, ["zero_uniform_groups true"]),
        ({"zero_uniform_groups": False, "format_penalty": 0.0}, 7, []),
        ({"zero_uniform_groups": False, "turn_rewards": False}, 7, []),
        ({"zero_uniform_groups": False}, 8, ["zero_uniform_groups true", "or gamma 1"]),
        ({"gamma": F.gamma_for_turns(8)}, 8, []),
        ({"gamma": F.gamma_for_turns(50)}, 50, []),
        ({"gamma": F.gamma_for_turns(8), "alpha": 0.8}, 8, ["gamma^7 = 0.7", "set gamma 1"]),
    ],
)
def test_what_is_said(options, turns, expected):
    settings = {"algorithm": "gtpo", "max_turns": turns, **asdict(CreditSettings(**options))}
    said = where_success_is_rare(settings)
    assert (said is None) == (not expected)
    assert all(part in said for part in expected)
    assert where_success_is_rare({**settings, "algorithm": "grpo"}) is None


def test_what_is_not_known_is_not_held_against_a_run():
    assert where_success_is_rare({"algorithm": "gtpo", "gamma": "nan", "alpha": 0.5, "max_turns": None}) is None


@pytest.mark.parametrize(
    ("options", "size", "warned"),
    [({}, 2, True), ({}, 3, True), ({}, 4, False), ({"normalize_over": "all_turns"}, 2, False)],
)
def test_small_groups_under_the_scope_of_first_turns(options, size, warned):
    settings = {"algorithm": "gtpo", **asdict(CreditSettings(**options))}
    assert (where_groups_are_small(settings, size) is not None) == warned
    assert where_groups_are_small({**settings, "algorithm": "grpo"}, size) is None
