"""`gtpo.credit`: the credit of each turn of finished rollouts, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from gtpo._text import for_terminal, well_formed
from gtpo.credit_assignment import (
    PARTS,
    TURN_REWARDS,
    Credit,
    CreditInputs,
    CreditSettings,
    compute_credit,
    credit_inputs,
)
from gtpo.errors import ConfigError
from gtpo.scoring import check_names
from gtpo.show import show
from gtpo.similarity import CodeSimilarity, get_similarity
from gtpo.turn_rewards import TurnRewardFunction, weighted_turn_rewards
from gtpo.types import Trajectory

if TYPE_CHECKING:
    import pandas as pd


def turn_parts(values: Mapping[str, list[Any]], row: int, turn: int, num_turns: int) -> dict[str, float]:
    """The parts of a turn's reward, their sum, its return and its advantage.

    Args:
        values: the tensors of `PARTS` as lists.
        row: index of the rollout.
        turn: index of the turn.
        num_turns: number of turns of the rollout.
    """
    last = turn == num_turns - 1
    accuracy, shaped = values["accuracy_B"][row], values["shaped_B"][row]
    return {
        "r_acc": accuracy if last else 0.0,
        "r_shaped": max(shaped - accuracy, 0.0) if last and shaped else 0.0,
        "r_format": values["format_B_K"][row][turn],
        "r_own": values["own_B_K"][row][turn],
        "reward": values["rewards_B_K"][row][turn],
        "return": values["returns_B_K"][row][turn],
        "advantage": values["advantages_B_K"][row][turn],
    }


@dataclass(frozen=True)
class CreditTable:
    """The credit of each turn of some rollouts.

    Attributes:
        trajectories: the rollouts.
        inputs: the `CreditInputs` of each.
        credit: rewards, returns and advantages as tensors.
        settings: the numbers of the algorithm.
    """

    trajectories: tuple[Trajectory, ...]
    inputs: tuple[CreditInputs, ...]
    credit: Credit
    settings: CreditSettings

    def to_frame(self) -> pd.DataFrame:
        """One row per turn: `group`, `rollout`, `turn` (from 0), `passed`, `text`, the parts of its reward (`r_acc`,
        `r_shaped`, `r_format`, `r_own`, and `turn_reward/NAME` for each of your own turn rewards), `reward`, `return`,
        `advantage`.
        """
        import pandas as pd

        values = {name: getattr(self.credit, name).tolist() for name in PARTS}
        rows = []
        for i, (trajectory, known) in enumerate(zip(self.trajectories, self.inputs, strict=True)):
            for j, turn in enumerate(trajectory.turns):
                own = {f"turn_reward/{name}": numbers[j] for name, numbers in known.turn_rewards.items()}
                place = {"group": known.group_id, "rollout": i, "turn": j, "passed": known.passed}
                parts = turn_parts(values, i, j, len(trajectory.turns))
                rows.append({**place, "text": well_formed(turn.text), **own, **parts})
        return pd.DataFrame(rows)

    def show(self) -> None:
        """Display the table: HTML in a notebook, text on a terminal."""
        show(self)

    def __str__(self) -> str:
        frame = self.to_frame()
        frame["text"] = [for_terminal(" ".join(text.split()))[:40] for text in frame["text"]]
        return str(frame.round(3).to_string(index=False))

    def _repr_html_(self) -> str:
        return str(self.to_frame().round(3).to_html(index=False, escape=True))


def credit(
    trajectories: Any,
    *,
    passed: Sequence[bool] | None = None,
    groups: Sequence[int] | None = None,
    rewards: Sequence[float | None] | None = None,
    turn_reward_funcs: Sequence[TurnRewardFunction] = (),
    turn_reward_weights: Sequence[float] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    similarity: str | CodeSimilarity = "lexical",
    algorithm: str = "gtpo",
    **settings: Any,
) -> CreditTable:
    """Compute the rewards, returns and advantages of each turn; see docs/algorithm.md.

    Args:
        trajectories: finished rollouts, or the result of `gtpo.evaluate`, which also supplies `passed`, `groups` and
            `rewards`.
        passed: for each rollout, whether its final answer was verified.
        groups: for each rollout, a number that the rollouts of one problem share; None: all answer one problem.
        rewards: for each rollout, its graded outcome; None: 1 if it passed, else 0. A rollout whose entry is None is
            left out of the credit.
        turn_reward_funcs: your own turn rewards, see `gtpo.turn_rewards`.
        turn_reward_weights: one weight per function; None: 1 each.
        columns: further arguments of those functions, by name, one entry per rollout.
        similarity: code similarity, see `gtpo.similarity.get_similarity`.
        algorithm: one of `gtpo.credit_assignment.ALGORITHMS`.
        settings: fields of `gtpo.credit_assignment.CreditSettings`, such as `gamma` or `normalize_over`.

    Raises:
        ConfigError: there is no rollout, an entry is not a rollout, lists have different lengths, or a setting is
            unknown.
        RewardError: a turn reward function returned something that is not a reward.
    """
    own: Sequence[Mapping[str, Sequence[float]]] | None = None
    if hasattr(trajectories, "trajectories") and hasattr(trajectories, "samples"):
        result, trajectories = trajectories, trajectories.trajectories
        passed = result.passed if passed is None else passed
        groups = result.groups if groups is None else groups
        rewards = [sample["reward"] for sample in result.samples] if rewards is None else rewards
        own = [sample["turn_rewards"] for sample in result.samples]
    rollouts = _rollouts(trajectories)
    if passed is None:
        raise ConfigError("passed is missing: give one entry per rollout, such as [True, False]")
    groups = [0] * len(rollouts) if groups is None else groups
    graded = [float(ok) for ok in passed] if rewards is None else rewards
    for name, values in (("passed", passed), ("groups", groups), ("rewards", graded)):
        if len(values) != len(rollouts):
            raise ConfigError(f"{name} has {len(values)} entries for {len(rollouts)} rollouts; give one for each")
    if (turn_reward_funcs or any(own or ())) and algorithm not in TURN_REWARDS:
        raise ConfigError(f"algorithm {algorithm} has one reward per rollout, so turn rewards have no effect")
    weights = [1.0] * len(turn_reward_funcs) if turn_reward_weights is None else turn_reward_weights
    if len(weights) != len(turn_reward_funcs):
        raise ConfigError(f"{len(weights)} turn_reward_weights for {len(turn_reward_funcs)} turn_reward_funcs")
    if turn_reward_funcs or own is None:
        check_names(turn_reward_funcs)
        own = weighted_turn_rewards(turn_reward_funcs, weights, rollouts, columns or {})
    chosen = _settings(settings)
    inputs = tuple(
        credit_inputs(
            trajectory,
            passed=bool(passed[i]),
            group_id=int(groups[i]),
            penalize_syntax_errors=chosen.penalize_syntax_errors,
            dropped=graded[i] is None,
            outcome=graded[i],
            turn_rewards=own[i],
        )
        for i, trajectory in enumerate(rollouts)
    )
    alike = get_similarity(similarity) if isinstance(similarity, str) else similarity
    return CreditTable(rollouts, inputs, compute_credit(inputs, alike, chosen, algorithm=algorithm), chosen)


def _rollouts(given: Any) -> tuple[Trajectory, ...]:
    rollouts = tuple(given) if isinstance(given, Sequence) else ()
    if not rollouts:
        raise ConfigError("credit needs rollouts: give a list of trajectories, or the result of gtpo.evaluate")
    if odd := next((item for item in rollouts if not isinstance(item, Trajectory)), None):
        raise ConfigError(f"credit needs trajectories, got a {type(odd).__name__}; gtpo.evaluate(...).trajectories are")
    return rollouts


def _settings(given: Mapping[str, Any]) -> CreditSettings:
    known = [item.name for item in fields(CreditSettings)]
    if unknown := sorted(set(given) - set(known)):
        raise ConfigError(f"credit has no setting {unknown[0]!r}; there are: {', '.join(known)}")
    return CreditSettings(**given)
