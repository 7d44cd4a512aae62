"""The options of GTPO inside verl's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gtpo.credit_assignment import CreditSettings, default_gamma
from gtpo.errors import ConfigError
from gtpo.rollout import RolloutConfig
from gtpo.scoring import RewardConfig


@dataclass(frozen=True)
class AlgorithmOptions:
    """`algorithm.gtpo` in verl's configuration: `+algorithm.gtpo.alpha=0.25` and so on.

    verl's own `algorithm.gamma` and `algorithm.lam` discount tokens and are not read.

    Attributes:
        credit: the fields of `gtpo.credit_assignment.CreditSettings`.
        similarity: as the option `similarity` of `gtpo train`.
    """

    credit: CreditSettings = field(default_factory=CreditSettings)
    similarity: str = "lexical"

    @classmethod
    def of(cls, algorithm: Any) -> AlgorithmOptions:
        """Read the options from verl's `config.algorithm`, or its dataclass; missing options keep their defaults.

        Raises:
            ConfigError: an option is unknown or can't be used.
        """
        found = _plain(algorithm.get("gtpo") if hasattr(algorithm, "get") else getattr(algorithm, "gtpo", None))
        if misplaced := sorted(set(found) & _OF_REWARDS):
            raise ConfigError(f"algorithm.gtpo: {misplaced[0]} is an option of the agent loop: {_WHERE}")
        similarity = found.pop("similarity", "lexical")
        _check_known("algorithm.gtpo", found, {item.name for item in fields(CreditSettings)}, "similarity")
        credit = CreditSettings(**found)
        if not (credit.turn_returns and credit.turn_rewards):
            raise ConfigError("algorithm.gtpo: turn_rewards and turn_returns are for ablations under gtpo train only")
        return cls(credit, similarity)


@dataclass
class LoopConfig(RolloutConfig, RewardConfig):
    """The options of the agent loop: rollouts and their rewards."""

    def __post_init__(self) -> None:
        RolloutConfig.__post_init__(self)
        self.check_rewards()


_WHERE = "give it under `options` in the file actor_rollout_ref.rollout.agent.agent_loop_config_path"
_OF_REWARDS = {item.name for item in fields(RewardConfig)}
_OF_VERL: Mapping[str, str] = {
    "max_completion_length": "actor_rollout_ref.rollout.response_length",
    "max_context": "actor_rollout_ref.rollout.max_model_len",
    "max_concurrency": "actor_rollout_ref.rollout.agent.num_workers",
    "chat_template_kwargs": "data.apply_chat_template_kwargs",
    **{
        name: f"actor_rollout_ref.rollout.{name}"
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    },
}
"""Fields of `RolloutConfig` that verl sets, and verl's option for each."""


def loop_config(options: Any, rollout: Any = None, template_kwargs: Mapping[str, Any] | None = None) -> LoopConfig:
    """Read the options of the agent loop: rollouts and their rewards.

    Args:
        options: `options` of its entry in the file `actor_rollout_ref.rollout.agent.agent_loop_config_path`: the fields
            of `RolloutConfig` and `RewardConfig`, by the names of `gtpo train`.
        rollout: verl's `actor_rollout_ref.rollout`: the lengths of prompt, response and context.
        template_kwargs: verl's options of the chat template.

    Raises:
        ConfigError: an option is unknown, can't be used, or is set by verl.
    """
    found = _plain(options)
    if taken := sorted(set(found) & set(_OF_VERL)):
        raise ConfigError(f"options of the agent loop: {taken[0]} is verl's: set {_OF_VERL[taken[0]]}")
    _check_known("options of the agent loop", found, {item.name for item in fields(LoopConfig)} - set(_OF_VERL))
    if rollout is None:
        return LoopConfig(**found)
    longest = rollout.prompt_length + rollout.response_length
    return LoopConfig(
        **found,
        max_completion_length=rollout.response_length,
        max_context=min(longest, rollout.max_model_len or longest),
        chat_template_kwargs=dict(template_kwargs or {}),
    )


def gamma_by_turns(agent_loops: str | None) -> float:
    """The discount that `gtpo train` would use with the `max_turns` of the agent loop `gtpo`.

    Args:
        agent_loops: the file `actor_rollout_ref.rollout.agent.agent_loop_config_path`; None if there is none.

    Raises:
        ConfigError: an option of the agent loop is unknown or can't be used.
    """
    entries = OmegaConf.load(agent_loops) if agent_loops else []
    options = next((entry.get("options") for entry in entries if entry.name == "gtpo"), None)
    return default_gamma(loop_config(options).max_turns)


def _plain(options: Any) -> dict[str, Any]:
    if isinstance(options, DictConfig):
        options = OmegaConf.to_container(options, resolve=True)
    if not isinstance(options, Mapping | None):
        raise ConfigError(f"the options of gtpo must be a mapping, got {options!r}")
    return {str(name): value for name, value in (options or {}).items()}


def _check_known(where: str, found: Mapping[str, Any], known: set[str], *more: str) -> None:
    if unknown := sorted(set(found) - known):
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(sorted({*known, *more}))}")
