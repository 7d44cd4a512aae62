"""Scores of a rollout, the same in training and in evaluation: verdict, rewards by name, pass or fail, turn rewards.

The outcome reward of a rollout is the sum of its reward functions, weighted by `reward_weights`. The verifier is one of
them, under the name `verified`, and by default the only one. An environment's `get_reward` is one more, with weight 1;
as in TRL, it is the only one if no other is given. A rollout passes if its outcome reward reaches `success_threshold`.
A rollout to which no function applies has no outcome reward and does not pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from gtpo.errors import ConfigError, VerifierError
from gtpo.failures import Failure
from gtpo.reward_functions import AUTO, call_all, guarded, is_verifier, listed, named
from gtpo.rollout.environment import Environments
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict, Verifier, get_verifier
from gtpo.turn_rewards import (
    TurnRewardFunction,
    asks_for_answers,
    environment_turn_rewards,
    get_turn_reward,
    name_of,
    weighted_turn_rewards,
)
from gtpo.types import Trajectory

VERIFIED = "verified"
"""The verifier's name among the reward functions."""

Rewards = Sequence[Sequence[float | None]]
"""For each rollout, the reward of each function, in their order; None where a function does not apply."""


@dataclass
class RewardConfig:
    """How rollouts are scored. The options have the same names in every command."""

    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions with TRL's signature, as MODULE:FUNCTION or ./FILE.py:FUNCTION; auto means the "
            "verifier. By default the verifier alone."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of reward_funcs; by default 1 each."}
    )
    graded: bool = field(
        default=False,
        metadata={
            "help": "Reward the verifier's score instead of pass or fail (for qa, reasoning_gym, or your own verifier)."
        },
    )
    success_threshold: float = field(
        default=1.0, metadata={"help": "Outcome reward at or above which a rollout counts as passed."}
    )
    turn_reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Turn rewards besides the paper's: execution_feedback, repeated_calls, information_gain (training "
            "only: how much each turn raises the likelihood of the gold answer under the policy, at one more forward "
            "pass per rollout), or your own as MODULE:FUNCTION or ./FILE.py:FUNCTION."
        },
    )
    turn_reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of turn_reward_funcs; by default 1 each."}
    )

    def check_rewards(self) -> None:
        """Refuse values that are not finite.

        Raises:
            ConfigError: a value is not finite; names the option.
        """
        for name in ("reward_weights", "turn_reward_weights"):
            weights = getattr(self, name)
            if weights is not None and not all(map(math.isfinite, weights)):
                raise ConfigError(f"{name} must be finite, got {weights}")
        if not math.isfinite(self.success_threshold):
            raise ConfigError(f"success_threshold must be finite, got {self.success_threshold}")

    def recorded_rewards(self) -> dict[str, Any]:
        """The options that differ from their defaults, for records and comparisons."""
        found = {item.name: getattr(self, item.name) for item in fields(RewardConfig)}
        return {item.name: found[item.name] for item in fields(RewardConfig) if found[item.name] != item.default}


@dataclass(frozen=True)
class Scored:
    """The scores of a rollout.

    Attributes:
        verdict: the verdict on its final answer; without a verifier, given by the threshold.
        reward: its outcome reward; None if no function applies.
        passed: whether the outcome reward reaches the threshold.
        parts: the reward of each reward function by name, unweighted; empty if the verifier alone scores.
        turn_rewards: user-defined turn rewards by name, weighted, one number per turn.
        failure: the verifier's failure, if it failed.
    """

    verdict: Verdict
    reward: float | None
    passed: bool
    parts: Mapping[str, float | None] = field(default_factory=dict)
    turn_rewards: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    failure: Failure | None = None


class EnvironmentReward:
    """Stands for `get_reward` of the rollouts' environments among the reward functions.

    Args:
        name: the name it is logged under: the class's.
    """

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def of(self, trajectories: Sequence[Trajectory]) -> list[float | None]:
        """The environments' rewards; None for a rollout without one."""
        return [trajectory.reward for trajectory in trajectories]

    def as_function(self, trajectories: Callable[[], Sequence[Trajectory]]) -> Callable[..., list[float | None]]:
        """A reward function as TRL calls it, for the rollouts that `trajectories` returns at that time."""

        def given(**columns: Any) -> list[float | None]:
            return self.of(trajectories())

        given.__name__ = self.__name__
        return given


class Scorer:
    """Scores rollouts with a verifier, reward functions and turn rewards.

    Args:
        verifier: checks final answers; None: reward functions alone score a rollout.
        reward_funcs: functions; "auto" or a verifier among them stands for the verdict. By default the verdict alone,
            or the environment's reward alone.
        reward_weights: one weight per function; by default 1 each.
        graded: reward the verifier's score instead of pass or fail.
        success_threshold: outcome reward at or above which a rollout passes.
        turn_reward_funcs: see `gtpo.turn_rewards`.
        turn_reward_weights: one weight per function; by default 1 each.
        environment: the name under which `get_reward` of environments is one more reward function of weight 1.
        environment_turns: the name under which their `get_turn_reward` is one more turn reward of weight 1.

    Raises:
        ConfigError: the number of weights differs from that of functions, or an entry is not a reward function.
    """

    def __init__(
        self,
        verifier: Verifier | None,
        *,
        reward_funcs: Any = None,
        reward_weights: Sequence[float] | None = None,
        graded: bool = False,
        success_threshold: float = 1.0,
        turn_reward_funcs: Sequence[TurnRewardFunction] = (),
        turn_reward_weights: Sequence[float] | None = None,
        environment: str | None = None,
        environment_turns: str | None = None,
    ) -> None:
        own = [EnvironmentReward(environment)] if environment is not None else []
        others = [] if own and reward_funcs is None else listed(reward_funcs)
        self.sources = [*others, *own]
        self.sources_of_trainer = others or self.sources
        self.added = own[0] if own and others else None
        self.verifier = verifier if any(map(is_verifier, self.sources)) else None
        self.graded, self.success_threshold = graded, success_threshold
        self.names = _distinct([_named(source) for source in self.sources])
        self.weights = [*_weights("reward", reward_weights, others), *(1.0 for _ in own)]
        self.turn_reward_funcs = check_names(turn_reward_funcs)
        self.turn_reward_weights = _weights("turn_reward", turn_reward_weights, self.turn_reward_funcs)
        if environment_turns is not None:
            self.turn_reward_funcs.append(environment_turn_rewards(environment_turns))
            self.turn_reward_weights.append(1.0)

    @property
    def by_verdict(self) -> bool:
        """Whether the verifier alone scores a rollout."""
        return all(map(is_verifier, self.sources))

    def verified(self, verdicts: Sequence[Verdict]) -> list[float]:
        """The verifier's reward for each rollout: 1 if it passed, else 0; its score under `graded`."""
        return [verdict.score if self.graded else float(verdict.passed) for verdict in verdicts]

    def score(
        self,
        trajectories: Sequence[Trajectory],
        problems: Sequence[Problem],
        *,
        prompts: Sequence[Any] = (),
        columns: Mapping[str, Sequence[Any]] | None = None,
        rewards: Callable[[Sequence[Verdict]], Rewards] | None = None,
    ) -> list[Scored]:
        """Score finished rollouts.

        Args:
            trajectories, problems: the rollouts, and the problem of each.
            prompts: the prompt of each, for reward functions; by default the problems, without a system prompt.
            columns: see `gtpo.reward_functions.columns_of`.
            rewards: calls the reward functions in place of this object, given the verdicts; a trainer passes its own.

        Raises:
            RewardError: a function returned something that is not a reward.
        """
        columns = columns or {}
        prompts = prompts or [problem.prompt(None) for problem in problems]
        verdicts, failures = self._verdicts(trajectories, problems)
        rows = self._called(verdicts, trajectories, prompts, columns) if rewards is None else rewards(verdicts)
        sums = [self._weighted(row) for row in rows]
        passed = [value is not None and value >= self.success_threshold for value in sums]
        if self.verifier is None:
            verdicts = [
                Verdict(ok, value or 0.0, "by reward functions") for ok, value in zip(passed, sums, strict=True)
            ]
        turns = weighted_turn_rewards(self.turn_reward_funcs, self.turn_reward_weights, trajectories, columns)
        return [
            Scored(
                verdict=verdicts[i],
                reward=sums[i],
                passed=passed[i],
                parts={} if self.by_verdict else dict(zip(self.names, row, strict=True)),
                turn_rewards=turns[i],
                failure=failures[i],
            )
            for i, row in enumerate(rows)
        ]

    def without_turn_rewards(self) -> Scorer:
        """A scorer with the same verifier and reward functions only: for outcome rewards before a trainer calls them.

        Raises:
            ConfigError: one of them is a reward model.
        """
        found = copy.copy(self)
        found.turn_reward_funcs, found.turn_reward_weights = [], []
        found.check_functions()
        return found

    def check_functions(self) -> None:
        """Refuse reward models and turn rewards that need scored answers, since only a trainer supports them.

        Raises:
            ConfigError: there is one; names the first.
        """
        for source in self.sources:
            if not is_verifier(source) and isinstance(source, str | nn.Module):
                name = source if isinstance(source, str) else name_of(source)
                raise ConfigError(
                    f"reward_funcs: {name!r} is a reward model, which only training can use; give functions, "
                    "MODULE:FUNCTION or ./file.py:FUNCTION"
                )
        for function in self.turn_reward_funcs:
            if asks_for_answers(function):
                raise ConfigError(
                    f"turn_reward_funcs: {name_of(function)} needs a policy in training that scores the gold answer, "
                    "and there is none here; leave it out"
                )

    def close(self) -> None:
        """Close the verifier."""
        if self.verifier is not None:
            self.verifier.close()

    def _verdicts(
        self, trajectories: Sequence[Trajectory], problems: Sequence[Problem]
    ) -> tuple[list[Verdict], list[Failure | None]]:
        if self.verifier is None:
            return [Verdict(False, 0.0, "")] * len(trajectories), [None] * len(trajectories)
        return verify(self.verifier, trajectories, problems)

    def _called(
        self,
        verdicts: Sequence[Verdict],
        trajectories: Sequence[Trajectory],
        prompts: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> Rewards:
        others = [one for one in self.sources if not (is_verifier(one) or isinstance(one, EnvironmentReward))]
        given = iter(call_all(list(map(guarded, others)), trajectories, prompts, columns))

        def of(source: Any) -> Sequence[float | None]:
            if isinstance(source, EnvironmentReward):
                return source.of(trajectories)
            return self.verified(verdicts) if is_verifier(source) else next(given)

        lists = [of(source) for source in self.sources]
        return [list(row) for row in zip(*lists, strict=True)]

    def _weighted(self, rewards: Sequence[float | None]) -> float | None:
        """The weighted sum of a rollout's rewards; None where no function applies."""
        applies = [(weight, value) for weight, value in zip(self.weights, rewards, strict=True) if value is not None]
        return sum(weight * value for weight, value in applies) if applies else None


def check_names(turn_reward_funcs: Sequence[TurnRewardFunction]) -> list[TurnRewardFunction]:
    """The turn reward functions, whose names must differ.

    Raises:
        ConfigError: two have the same name, under which they are recorded.
    """
    names = [name_of(function) for function in turn_reward_funcs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"turn_reward_funcs: two of them are named {twice[0]!r}; give them different names")
    return list(turn_reward_funcs)


def make_scorer(
    config: Any,
    *,
    reward_funcs: Any = None,
    verifier: Verifier | None = None,
    turn_reward_funcs: Sequence[TurnRewardFunction] | None = None,
    environments: Environments | None = None,
    turns: bool = True,
) -> Scorer:
    """The scorer that a configuration describes.

    Args:
        config: a `RewardConfig` that is also a `RolloutConfig`.
        reward_funcs, verifier, turn_reward_funcs: replace those that the configuration names.
        environments: the rollouts' environments, which may give rewards; by default those of the configuration.
        turns: whether to use the environments' turn rewards.

    Raises:
        ConfigError: see `Scorer`; or a name can't be imported, or is not a verifier.
    """
    environments = environments or config.make_environments()
    sources = named(config.reward_funcs) if reward_funcs is None else reward_funcs
    rewarded = environments is not None and environments.has_reward
    if not (rewarded and sources is None):
        sources = listed(sources)
    given = [source for source in sources or () if is_verifier(source) and source != AUTO]
    if turn_reward_funcs is None:
        turn_reward_funcs = [get_turn_reward(name) for name in config.turn_reward_funcs or ()]
    verifies = any(map(is_verifier, sources or ()))
    return Scorer(
        (verifier or (given[0] if given else get_verifier(config.verifier))) if verifies else None,
        reward_funcs=sources,
        reward_weights=config.reward_weights,
        graded=config.graded,
        success_threshold=config.success_threshold,
        turn_reward_funcs=turn_reward_funcs,
        turn_reward_weights=config.turn_reward_weights,
        environment=environments.name if environments and rewarded else None,
        environment_turns=environments.name if environments and environments.has_turn_reward and turns else None,
    )


def verify(
    verifier: Verifier, trajectories: Sequence[Trajectory], problems: Sequence[Problem]
) -> tuple[list[Verdict], list[Failure | None]]:
    """Verdicts of all rollouts, and the verifier's failures. If it fails on the batch, each is tried separately."""
    texts = [trajectory.answer_text for trajectory in trajectories]
    try:
        return verifier.verify_many(texts, problems), [None] * len(texts)
    except VerifierError:
        pass
    verdicts: list[Verdict] = []
    failures: list[Failure | None] = []
    for text, problem in zip(texts, problems, strict=True):
        try:
            verdicts += verifier.verify_many([text], [problem])
            failures.append(None)
        except VerifierError as error:
            verdicts.append(Verdict(False, 0.0, f"the verifier failed: {error}"))
            failures.append(Failure("verifier", str(error)))
    return verdicts, failures


def _named(source: Any) -> str:
    if is_verifier(source):
        return VERIFIED
    return source.rpartition("/")[2] if isinstance(source, str) else name_of(source)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number appended to repeated ones."""
    return [name if (n := names[:i].count(name)) == 0 else f"{name}_{n + 1}" for i, name in enumerate(names)]


def _weights(what: str, weights: Sequence[float] | None, functions: Sequence[Any]) -> list[float]:
    if weights is None:
        return [1.0] * len(functions)
    if len(weights) != len(functions):
        raise ConfigError(f"{len(weights)} {what}_weights for {len(functions)} {what}_funcs: give one for each")
    return list(weights)
