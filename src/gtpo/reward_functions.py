"""Reward functions with TRL's signature: which are given, what they may return, and how they are called."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from gtpo._async import run_async
from gtpo._own_code import imported, own_code
from gtpo.errors import ConfigError, RewardError
from gtpo.turn_rewards import checked, name_of
from gtpo.types import Trajectory

AUTO = "auto"
"""Stands for the verifier in a list of reward functions."""


def listed(reward_funcs: Any) -> list[Any]:
    """The reward functions as a list; if none are given, the verifier.

    Raises:
        ConfigError: an empty list.
    """
    if reward_funcs is None:
        return [AUTO]
    found = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if not found:
        raise ConfigError("reward_funcs is empty: give functions, or omit it to use the verifier")
    return found


def is_verifier(source: Any) -> bool:
    """Whether an entry of `reward_funcs` is `auto` or one of our verifiers."""
    return source == AUTO if isinstance(source, str) else hasattr(source, "verify_many")


def named(paths: Sequence[str] | None) -> list[Any] | None:
    """The functions that command-line options name; `auto` and model ids are kept as they are.

    Raises:
        ConfigError: a function can't be imported.
    """
    if paths is None:
        return None
    return [path if path == AUTO or ":" not in path else imported(path, "reward_funcs") for path in paths]


def guarded(source: Any) -> Any:
    """The function with a check of what it returns, under its own name; model ids and modules are left to TRL."""
    if isinstance(source, str | nn.Module):
        return source
    if not callable(source):
        raise ConfigError(f"reward_funcs: {source!r} is not a function")
    name = name_of(source)
    _check_takes(source, name)

    def check(given: Any, count: int) -> list[float | None]:
        if not isinstance(given, Sequence) or len(given) != count:
            size = len(given) if isinstance(given, Sequence) else f"a {type(given).__name__}"
            raise RewardError(f"reward function {name}: got {size} rewards for {count} rollouts; give one for each")
        return [
            None if value is None else checked(value, f"reward function {name}", f"rollout {i}")
            for i, value in enumerate(given)
        ]

    if inspect.iscoroutinefunction(source) or inspect.iscoroutinefunction(type(source).__call__):

        @functools.wraps(source)
        async def asynchronous(*, prompts: Sequence[Any], **columns: Any) -> list[float | None]:
            with own_code(f"reward function {name}", RewardError):
                given = await source(prompts=prompts, **columns)
            return check(given, len(prompts))

        return asynchronous

    def synchronous(*, prompts: Sequence[Any], **columns: Any) -> list[float | None]:
        with own_code(f"reward function {name}", RewardError):
            given = source(prompts=prompts, **columns)
        return check(given, len(prompts))

    synchronous.__name__ = name
    return synchronous


def _check_takes(source: Any, name: str) -> None:
    try:
        signature = inspect.signature(source)
    except ValueError:  # some functions of C have none
        return
    try:
        signature.bind_partial(prompts=(), completions=(), completion_ids=())
    except TypeError as error:
        raise ConfigError(
            f"reward_funcs: {name}{signature} can't be called: {error}. A reward function is f(prompts, completions, "
            "**columns); a function of (answer_text, problem) is a verifier: give it as --verifier"
        ) from error


_RESERVED = {"prompt", "prompts", "completions", "completion_ids", "environments"}
_RESERVED |= {"trainer_state", "log_extra", "log_metric"}


def columns_of(rows: Sequence[Mapping[str, Any]], more: Iterable[str] = ()) -> dict[str, list[Any]]:
    """The keyword arguments of reward functions: each column of the rows, also those in `extras`; None if missing.

    Args:
        rows: rows of `gtpo.training.data.problem_dataset`, or of any data set; one per rollout.
        more: names that other rows of the data set have in their `extras`.
    """
    whole = [{**extras_of(row), **row} for row in rows]
    names = dict.fromkeys([*(name for row in whole for name in row), *more])
    return {name: [row.get(name) for row in whole] for name in names if name not in _RESERVED}


def extras_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The further fields of a row's problem, which a data set stores as JSON."""
    extras = row.get("extras")
    if isinstance(extras, str):
        try:
            extras = json.loads(extras)
        except ValueError:
            return {}
    return dict(extras) if isinstance(extras, Mapping) else {}


def completion_messages(trajectory: Trajectory) -> list[dict[str, str]]:
    """A rollout as TRL's reward functions get it: the messages after the prompt."""
    messages = []
    for turn in trajectory.turns:
        messages.append({"role": "assistant", "content": turn.text})
        if turn.observation:
            role = turn.observation.role
            messages += [{"role": role, "content": result} for result in turn.observation.results]
    return messages


def call_all(
    functions: Sequence[Any], trajectories: Sequence[Trajectory], prompts: Sequence[Any], columns: Mapping[str, Any]
) -> list[list[float | None]]:
    """Call functions with TRL's arguments, without a trainer; async ones run concurrently.

    Args:
        functions: as returned by `guarded`.
        trajectories, prompts: the rollouts, and the prompt of each.
        columns: see `columns_of`.

    Returns:
        For each function, one reward per rollout; None where it does not apply.

    Raises:
        RewardError: a function raised, or returned something that is not a reward; names it.
    """
    given = {
        "prompts": list(prompts),
        "completions": [completion_messages(trajectory) for trajectory in trajectories],
        "completion_ids": [trajectory.completion_ids for trajectory in trajectories],
        "trainer_state": None,
        "log_extra": lambda *args: None,
        "log_metric": lambda *args: None,
        **columns,
    }
    found = [function(**given) for function in functions]
    waiting = [i for i, value in enumerate(found) if inspect.iscoroutine(value)]

    async def together() -> list[Any]:
        return await asyncio.gather(*(found[i] for i in waiting))

    for i, value in zip(waiting, run_async(together()) if waiting else (), strict=True):
        found[i] = value
    return found
