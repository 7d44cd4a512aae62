"""Estimators in the form that the bench uses: from rollouts of the process to the advantage of each turn."""

from __future__ import annotations

from torch import Tensor

from gtpo.credit_assignment import SHAPED, Credit, CreditSettings, turn_credit
from gtpo.lab.tabular.gradients import Advantage
from gtpo.lab.tabular.process import CallProcess, Rollouts


def estimator(
    process: CallProcess, group_size: int, *, algorithm: str = "gtpo", eps: float = 1e-4, **settings: object
) -> Advantage:
    """The advantages of an algorithm. The rollouts of a group must be contiguous.

    Args:
        process: the process.
        group_size: rollouts per group.
        algorithm: one of `gtpo.credit_assignment.ALGORITHMS`.
        eps: added to deviations.
        settings: fields of `CreditSettings`.
    """
    chosen = CreditSettings(**settings)  # type: ignore[arg-type]
    return lambda rollouts, group_ids_B: (
        credit_of(process, rollouts, group_ids_B, group_size, chosen, algorithm, eps).advantages_B_K
    )


def credit_of(
    process: CallProcess,
    rollouts: Rollouts,
    group_ids_B: Tensor,
    group_size: int,
    settings: CreditSettings,
    algorithm: str,
    eps: float = 1e-4,
) -> Credit:
    """The full credit of rollouts, in float64."""
    shapes = algorithm in SHAPED and settings.alpha > 0
    shaped_B = rollouts.passed_B.double() * 0
    if shapes:
        shaped_B = shaped_groups(rollouts.code_B_D(process.states), rollouts.passed_B, group_size, settings.alpha)
    return turn_credit(
        passed_B=rollouts.passed_B,
        num_turns_B=rollouts.num_turns_B,
        invalid_B_K=rollouts.invalid_B_K,
        has_call_B=rollouts.has_call_B,
        group_B=group_ids_B,
        shaped_B=shaped_B,
        settings=settings,
        algorithm=algorithm,
        eps=eps,
    )


def shaped_groups(code_B_D: Tensor, passed_B: Tensor, group_size: int, alpha: float) -> Tensor:
    """`gtpo.functional.shaped_accuracy` for many groups of one size at once; the similarity is the cosine of the codes.

    Returns:
        shaped_B: 0 for rollouts that passed, in groups without a success, and without code.
    """
    unit = code_B_D / code_B_D.norm(dim=1, keepdim=True).clamp(min=1e-12)
    unit_M_G_D = unit.view(-1, group_size, unit.shape[1])
    passed_M_G = passed_B.view(-1, group_size).to(unit)
    of_passes_M_D = (unit_M_G_D * passed_M_G[:, :, None]).sum(dim=1)
    total_M_G = (unit_M_G_D * of_passes_M_D[:, None, :]).sum(dim=-1)
    mean_M_G = total_M_G / passed_M_G.sum(dim=1, keepdim=True).clamp(min=1)
    return (alpha * mean_M_G.clamp(0, 1) * (1 - passed_M_G)).flatten()
