"""Reward functions as TRL knows them: which there are, and that they give one reward per rollout."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gtpo._imports import imported
from gtpo.errors import ConfigError, RewardError
from gtpo.turn_rewards import checked, name_of

AUTO = "auto"
"""Stands for the verifier in a list of reward functions."""


def listed(reward_funcs: Any) -> list[Any]:
    """The reward functions as a list; none given: the verifier.

    Raises:
        ConfigError: an empty list.
    """
    if reward_funcs is None:
        return [AUTO]
    found = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if not found:
        raise ConfigError("reward_funcs is empty: give functions, or leave it out for the verifier")
    return found


def is_verifier(source: Any) -> bool:
    """Whether an entry of `reward_funcs` is `auto` or a verifier of ours."""
    return source == AUTO if isinstance(source, str) else hasattr(source, "verify_many")


def named(paths: Sequence[str] | None) -> list[Any] | None:
    """The functions that options of the command line name; `auto` and model ids stay as they are.

    Raises:
        ConfigError: one can't be imported.
    """
    if paths is None:
        return None
    return [path if path == AUTO or ":" not in path else imported(path, "reward_funcs") for path in paths]


def guarded(source: Any) -> Any:
    """A function that refuses what is no reward, under its own name; model ids and modules are TRL's to use."""
    if isinstance(source, str | nn.Module):
        return source
    if not callable(source):
        raise ConfigError(f"reward_funcs: {source!r} is not a function")
    name = name_of(source)

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
            return check(await source(prompts=prompts, **columns), len(prompts))

        return asynchronous

    def synchronous(*, prompts: Sequence[Any], **columns: Any) -> list[float | None]:
        return check(source(prompts=prompts, **columns), len(prompts))

    synchronous.__name__ = name
    return synchronous


def named_as(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function under another name, which it is logged as."""

    def renamed(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    renamed.__name__ = name
    return renamed


class RewardSources:
    """The reward functions that TRL's trainer has prepared, put aside: it sees their weighted sum alone.

    The credit of rollouts is made of that sum, and the paper's GRPO baseline takes it together with the format. So each
    function is called once, before TRL's own normalisation.

    Args:
        trainer: a `GRPOTrainer` after its `__init__`; from now on it has one reward function.
        outcome_reward: that function.
        environment_reward: one more reward function, with weight 1, as TRL has an environment's.
    """

    _NAMES = ("reward_funcs", "reward_processing_classes", "reward_func_names", "reward_weights")

    def __init__(
        self, trainer: Any, outcome_reward: Callable[..., Any], environment_reward: Callable[..., Any] | None = None
    ) -> None:
        self._trainer = trainer
        self._all = {name: getattr(trainer, name) for name in self._NAMES}
        if environment_reward is not None:
            for name, value in zip(self._NAMES, (environment_reward, None, environment_reward.__name__), strict=False):
                self._all[name] = [*self._all[name], value]
            self._all["reward_weights"] = torch.cat([self._all["reward_weights"], torch.ones(1)])
        values = ([outcome_reward], [None], ["outcome_reward"], torch.ones(1))
        self._one = dict(zip(self._NAMES, values, strict=True))
        self._use(self._one)

    def _use(self, sources: Mapping[str, Any]) -> None:
        for name, value in sources.items():
            setattr(self._trainer, name, value)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, TRL calls all of them."""
        self._use(self._all)
        try:
            yield
        finally:
            self._use(self._one)

    def means(self, rewards_B_F: Tensor) -> dict[str, float]:
        """The mean reward by the function's name, where there are others than the verifier."""
        names = self._all["reward_func_names"]
        if names == ["verified"]:
            return {}
        return {name: column.nanmean().item() for name, column in zip(names, rewards_B_F.unbind(dim=1), strict=True)}

    def weighted(self, rewards_B_F: Tensor) -> list[float | None]:
        """The weighted sum for each rollout; None where no function applies."""
        sums = (rewards_B_F * self._all["reward_weights"].to(rewards_B_F.device)).nansum(dim=1).tolist()
        applies = (~rewards_B_F.isnan().all(dim=1)).tolist()
        return [value if there else None for value, there in zip(sums, applies, strict=True)]
