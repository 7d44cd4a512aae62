"""Rewards: one for each turn (GTPO), or one for each rollout (the paper's GRPO baseline), and information gain."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gtpo.functional._checks import (
    active_turns,
    as_flags,
    check_finite,
    check_floating,
    check_shape,
    turn_values,
    widen,
)
from gtpo.functional.advantages import normalised, number_groups


def turn_rewards(
    passed_B: Tensor,
    num_turns_B: Tensor,
    invalid_B_K: Tensor,
    first_turn_has_call_B: Tensor,
    *,
    format_penalty: float = -0.1,
    shaped_B: Tensor | None = None,
    outcome_B: Tensor | None = None,
    own_B_K: Tensor | None = None,
) -> Tensor:
    """Turn-level rewards: the outcome at the last turn, and a penalty at every badly formatted turn.

        r[i,j] = r_acc[i,j] + r_format[i,j] + own[i,j]
        r_acc[i,j] = outcome[i] if j is i's last turn, else 0; if i failed and is shaped, max(outcome[i], shaped[i])
        r_format[i,j] = format_penalty if invalid[i,j], or if j = 1 and not first_turn_has_call[i]; else 0

    Without `outcome_B` and `own_B_K`, outcome[i] is 1 if passed[i], else 0, and the formula is the paper's.

    Source: turn-level rewards [P], formula and the value -0.1 [T]. A turn gets at most one penalty [T]. Graded
    outcomes and user-defined turn rewards are ours [O].

    Args:
        passed_B: bool, True iff the rollout's final answer is verified.
        num_turns_B: integer, 1..K.
        invalid_B_K: bool, True iff the turn holds one or more invalid tool calls. Padding is ignored.
        first_turn_has_call_B: bool, False iff the rollout made no tool call at all, valid or invalid, in any
            of its turns; that is our reading of "the first turn of a rollout without any tool call" [O].
            If a turn without a call ends the rollout, this equals whether the first turn has a call, hence
            the name. If the model continues after such a turn, pass whether the rollout made any call.
        format_penalty: at most 0.
        shaped_B: float, accuracy reward of a rollout that didn't pass (`shaped_accuracy`), 0 for one that
            did or that is not shaped. None: 0 everywhere.
        outcome_B: float, the graded outcome of each rollout, any finite number. None: 1 if it passed, else 0.
        own_B_K: float, user-defined turn rewards, any finite number per turn. Padding is ignored. None: none.

    Returns:
        rewards_B_K: in the dtype of `shaped_B`, else torch's default dtype. 0 past a rollout's last turn.

    Raises:
        ValueError: shapes don't fit, a flag is neither 0 nor 1, a number of turns lies outside 1..K, the
            penalty is positive or not finite, or `shaped_B`, `outcome_B` or `own_B_K` is not finite, or
            `shaped_B` is not 0 on a rollout that passed.
    """
    check_shape("invalid_B_K", invalid_B_K, (None, None))
    num_rollouts, max_turns = invalid_B_K.shape
    active = active_turns(num_turns_B, num_rollouts, max_turns)
    passed = as_flags("passed_B", passed_B, (num_rollouts,))
    has_call = as_flags("first_turn_has_call_B", first_turn_has_call_B, (num_rollouts,))
    penalised = as_flags("invalid_B_K", invalid_B_K.masked_fill(~active, 0), (num_rollouts, max_turns))
    if not (math.isfinite(format_penalty) and format_penalty <= 0):
        raise ValueError(f"format_penalty must be finite and at most 0, got {format_penalty}")

    first = torch.arange(max_turns, device=active.device) == 0
    penalised = penalised | (first & ~has_call[:, None])
    last = num_turns_B.long()[:, None] - 1
    accuracy = _accuracy(passed, shaped_B, outcome_B)
    rewards = accuracy.new_zeros(num_rollouts, max_turns).masked_fill(penalised, format_penalty)
    if own_B_K is not None:
        check_shape("own_B_K", own_B_K, (num_rollouts, max_turns))
        check_floating("own_B_K", own_B_K)
        own = own_B_K.to(accuracy.dtype).masked_fill(~active, 0)
        check_finite("own_B_K", own)
        rewards = rewards + own
    dtype = torch.get_default_dtype() if shaped_B is None else shaped_B.dtype
    return rewards.scatter_add(1, last, accuracy[:, None]).to(dtype)


def grpo_rewards(passed_B: Tensor, format_ok_B: Tensor, *, outcome_B: Tensor | None = None) -> Tensor:
    """Outcome reward of the paper's GRPO baseline, one per rollout.

        r[i] = min(r_acc[i], r_format[i]), both 0 or 1

    With graded outcomes: outcome[i] if the format is right, else min(outcome[i], 0), which is equal for 0 and 1.

    Source: [T]; graded outcomes are ours [O].

    Args:
        passed_B: bool, True iff the rollout's final answer is verified.
        format_ok_B: bool, True iff `turn_rewards` would penalise none of the rollout's turns.
        outcome_B: float, the graded outcome of each rollout, any finite number. None: 1 if it passed, else 0.

    Returns:
        rewards_B: in the dtype of `outcome_B`, else torch's default dtype.

    Raises:
        ValueError: shapes don't fit, a flag is neither 0 nor 1, or an outcome is not finite.
    """
    passed = as_flags("passed_B", passed_B, (None,))
    format_ok = as_flags("format_ok_B", format_ok_B, tuple(passed_B.shape))
    outcome = _accuracy(passed, None, outcome_B)
    dtype = torch.get_default_dtype() if outcome_B is None else outcome_B.dtype
    return torch.where(format_ok, outcome, outcome.clamp(max=0)).to(dtype)


def information_gain(
    answer_logprobs_B_K: Tensor, num_turns_B: Tensor, group_ids_B: Tensor, *, eps: float = 1e-4
) -> Tensor:
    """How much each turn, with its observation, raised the likelihood of the gold answer, normalised over the group.

        gain[i,j] = p[i,j+1] - p[i,j] for j < T_i, with p[i,j] = exp(l[i,j])
        r[i,j] = (gain[i,j] - mean(S)) / (std(S) + eps) for j < T_i, else 0; and 0 if S has one member or no spread

    with l[i,j] the mean log-probability of the gold answer's tokens before turn j, S the gains of all rollouts of i's
    group, and std the sample deviation. The last turn is the answer, which the outcome rewards.

    Source: information gain of IGPO (Wang et al. 2025, arXiv 2510.14967): the difference of probabilities as in its
    first version (the second uses that of the logarithms), normalised separately from the outcome as in its second.
    There the outcome is also normalised before the two are discounted; here it is not, and the return of both is
    normalised [O]. Without normalisation, gains taught a tiny model to make no calls
    (docs/results/information-gain.md).

    Args:
        answer_logprobs_B_K: float, at most 0: l. Padding is ignored.
        num_turns_B: integer, 1..K, the T_i of the equation.
        group_ids_B: integer, equal within a group; any values, order and group sizes.
        eps: at least 0, added to the deviation.

    Returns:
        gains_B_K: in the dtype of `answer_logprobs_B_K`. 0 at a rollout's last turn and past it.

    Raises:
        ValueError: shapes or dtypes don't fit, a number of turns lies outside 1..K, a log-probability is not finite,
            or `eps` is out of range.
    """
    logprobs, active = turn_values("answer_logprobs_B_K", answer_logprobs_B_K, num_turns_B)
    gains, gained = torch.zeros_like(logprobs), torch.zeros_like(active)
    gains[:, :-1], gained[:, :-1] = logprobs.exp().diff(dim=1), active[:, 1:]
    group_B, num_groups = number_groups(group_ids_B, len(logprobs))
    return normalised(gains, gained, group_B, num_groups, "all_turns", eps).to(answer_logprobs_B_K.dtype)


def _accuracy(passed: Tensor, shaped_B: Tensor | None, outcome_B: Tensor | None) -> Tensor:
    """Accuracy reward of each rollout, in the dtype for computing."""
    outcome = widen(passed.to(torch.get_default_dtype()))
    if outcome_B is not None:
        check_shape("outcome_B", outcome_B, tuple(passed.shape))
        check_floating("outcome_B", outcome_B)
        check_finite("outcome_B", outcome_B)
        outcome = widen(outcome_B)
    if shaped_B is None:
        return outcome
    check_shape("shaped_B", shaped_B, tuple(passed.shape))
    check_floating("shaped_B", shaped_B)
    check_finite("shaped_B", shaped_B)
    if bool((passed & (shaped_B != 0)).any()):
        raise ValueError("shaped_B must be 0 on rollouts that passed: a passing rollout is never shaped")
    shaped = widen(shaped_B)
    return torch.where(shaped > 0, torch.maximum(outcome.to(shaped.dtype), shaped), outcome.to(shaped.dtype))
