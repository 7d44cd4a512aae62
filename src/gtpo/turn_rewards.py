"""Turn rewards that ship with gtpo, each a function of finished rollouts; off by default.

`turn_reward_funcs` of `GTPOTrainer` takes these functions or your own ones of the same form:

    f(trajectories, **columns) -> one list per rollout, with one finite number per turn

`columns` are those of the data set, one entry per rollout. A function with a parameter `answer_logprobs` is given, for
each rollout, how likely the policy finds the gold answer before each turn (`gtpo.training.answer_scoring`): one mean
log-probability per turn, or None where there is no answer to score; and `group_ids`, a number that the rollouts of one
prompt share. With several processes, each calls the functions with its own rollouts. The numbers are weighted by
`turn_reward_weights` and added to the turn rewards of docs/algorithm.md.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gtpo._async import run_async
from gtpo._own_code import imported, own_code
from gtpo.errors import ConfigError, RewardError
from gtpo.types import Trajectory, Turn

TurnRewardFunction = Callable[..., Any]
ANSWER_LOGPROBS = "answer_logprobs"
"""The parameter with which a function requests the policy's scores of the gold answer."""


def asks_for_answers(function: TurnRewardFunction) -> bool:
    """Whether a function has a parameter `answer_logprobs`."""
    return ANSWER_LOGPROBS in inspect.signature(function).parameters


def execution_feedback(trajectories: Sequence[Trajectory], **columns: Any) -> list[list[float]]:
    """Reward for calls that run without an error.

        r[i,j] = share of the calls of turn j whose status is "ok"; 0 for a turn without a call that was carried out

    Source: execution feedback as a turn reward, as in ToolRL (arXiv 2504.13958) and others; the share is ours.
    """
    return [[_share_ok(turn) for turn in trajectory.turns] for trajectory in trajectories]


def repeated_calls(trajectories: Sequence[Trajectory], **columns: Any) -> list[list[float]]:
    """Penalty for repeating an earlier call of the same rollout, ignoring whitespace.

        r[i,j] = -1 if turn j holds a valid call whose code equals that of an earlier call of rollout i, else 0

    Source: ours.
    """
    return [_repetitions(trajectory) for trajectory in trajectories]


def environment_turn_rewards(name: str) -> TurnRewardFunction:
    """The rewards of the rollouts' environments for each turn (`get_turn_reward`), as a turn reward of that name.

    A turn without such a reward, as in a rollout that failed, gets 0.
    """

    def given(trajectories: Sequence[Trajectory], **columns: Any) -> list[list[float]]:
        return [[turn.reward or 0.0 for turn in trajectory.turns] for trajectory in trajectories]

    given.__name__ = name
    return given


def information_gain(
    trajectories: Sequence[Trajectory],
    answer_logprobs: Sequence[Sequence[float] | None] | None = None,
    group_ids: Sequence[int] = (),
    **columns: Any,
) -> list[list[float]]:
    """How much each turn raised the likelihood of the gold answer under the policy itself: `F.information_gain`.

    0 at the last turn, and at all turns of a rollout without an answer to score. Normalised over the group, also if the
    group is spread over processes: all of them must call it.

    Source: IGPO (arXiv 2510.14967); see `gtpo.functional.information_gain` for what differs.

    Args:
        trajectories: the rollouts.
        answer_logprobs: for each rollout, the mean log-probability of the gold answer before each turn, or None.
        group_ids: for each rollout, a number that the rollouts of its prompt share.
        columns: not used.

    Raises:
        ConfigError: `answer_logprobs` is missing.
    """
    if answer_logprobs is None:
        raise ConfigError(
            "information_gain needs answer_logprobs, the policy's scores of the gold answer, which only GTPOTrainer "
            "supplies: use it in gtpo train or in GTPOTrainer"
        )
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from gtpo import functional as F

    everywhere = gather_object(list(zip(group_ids, answer_logprobs, strict=True)))
    scored = [(group, values) for group, values in everywhere if values is not None]
    longest = max((len(values) for _, values in scored), default=1)
    padded = torch.zeros(len(scored), longest, dtype=torch.float64)
    for row, (_, values) in zip(padded, scored, strict=True):
        row[: len(values)] = torch.tensor(values, dtype=torch.float64)
    counts = torch.tensor([len(values) for _, values in scored], dtype=torch.long)
    groups = torch.tensor([group for group, _ in scored], dtype=torch.long)
    rows = iter(F.information_gain(padded, counts, groups).tolist())
    gains = [None if values is None else next(rows)[: len(values)] for _, values in everywhere]
    first = PartialState().process_index * len(trajectories)
    own = gains[first : first + len(trajectories)]
    return [[0.0] * len(t.turns) if row is None else row for t, row in zip(trajectories, own, strict=True)]


SHIPPED: Mapping[str, TurnRewardFunction] = {
    function.__name__: function for function in (execution_feedback, repeated_calls, information_gain)
}


def get_turn_reward(name: str) -> TurnRewardFunction:
    """The function of that name: one of `SHIPPED`, or your own as `MODULE:FUNCTION` or `./file.py:FUNCTION`.

    Raises:
        ConfigError: there is no such function.
    """
    if ":" in name:
        return imported(name, "turn_reward_funcs")
    if name not in SHIPPED:
        raise ConfigError(f"turn_reward_funcs: there is no {name!r}; there are: {', '.join(SHIPPED)}, MODULE:FUNCTION")
    return SHIPPED[name]


def weighted_turn_rewards(
    functions: Sequence[TurnRewardFunction],
    weights: Sequence[float],
    trajectories: Sequence[Trajectory],
    columns: Mapping[str, Sequence[Any]],
) -> list[dict[str, tuple[float, ...]]]:
    """The weighted results of all functions: for each rollout, the numbers of its turns by the function's name.

    Raises:
        RewardError: a function raised, or did not return one finite number per turn of a rollout; names it.
    """
    found: list[dict[str, tuple[float, ...]]] = [{} for _ in trajectories]
    for function, weight in zip(functions, weights, strict=True):
        name = name_of(function)
        with own_code(f"turn reward {name}", RewardError):
            given = function(trajectories, **columns)
            rows = run_async(given) if inspect.iscoroutine(given) else given
        if not isinstance(rows, Sequence) or len(rows) != len(trajectories):
            raise RewardError(f"turn reward {name}: give one list per rollout ({len(trajectories)} of them)")
        for i, (row, trajectory) in enumerate(zip(rows, trajectories, strict=True)):
            if not isinstance(row, Sequence) or len(row) != len(trajectory.turns):
                raise RewardError(
                    f"turn reward {name}: rollout {i} has {len(trajectory.turns)} turns, and got {row!r}; give one "
                    "number per turn"
                )
            found[i][name] = tuple(weight * checked(value, f"turn reward {name}", f"rollout {i}") for value in row)
    return found


def name_of(function: Callable[..., Any]) -> str:
    """The name under which a function is logged."""
    return getattr(function, "__name__", type(function).__name__)


def checked(value: Any, what: str, where: str) -> float:
    """The value as a finite number.

    Raises:
        RewardError: it is not a finite number.
    """
    if isinstance(value, bool | int | float) or hasattr(value, "item"):
        number = float(value)
        if math.isfinite(number):
            return number
    raise RewardError(f"{what}: {where} got {value!r}, which is not a finite number")


def _share_ok(turn: Turn) -> float:
    statuses = [status for status in turn.observation.statuses if status != "invalid"] if turn.observation else []
    return statuses.count("ok") / len(statuses) if statuses else 0.0


def _repetitions(trajectory: Trajectory) -> list[float]:
    seen: set[str] = set()
    rewards = []
    for turn in trajectory.turns:
        codes = [" ".join(call.code.split()) for call in turn.valid_calls]
        rewards.append(-1.0 if any(code in seen for code in codes) or len(set(codes)) < len(codes) else 0.0)
        seen.update(codes)
    return rewards
