"""The options of GTPO inside verl's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gtpo.credit import CreditSettings
from gtpo.errors import ConfigError
from gtpo.rollout import PromptArguments, RolloutLimits, ToolArguments


@dataclass(frozen=True)
class AlgorithmOptions:
    """`algorithm.gtpo` in verl's configuration: `+algorithm.gtpo.gamma=0.9` and so on.

    verl's own `algorithm.gamma` and `algorithm.lam` mean a token's discount and are not read.

    Attributes:
        credit: the fields of `gtpo.credit.CreditSettings`.
        similarity: as the option of `gtpo train`.
    """

    credit: CreditSettings = field(default_factory=CreditSettings)
    similarity: str = "lexical"

    @classmethod
    def of(cls, algorithm: Any) -> AlgorithmOptions:
        """Read them from verl's `config.algorithm`, or its dataclass; what is not there keeps its default.

        Raises:
            ConfigError: an unknown option or one that can't be used.
        """
        found = _plain(algorithm.get("gtpo") if hasattr(algorithm, "get") else getattr(algorithm, "gtpo", None))
        similarity = found.pop("similarity", "lexical")
        _check_known("algorithm.gtpo", found, {item.name for item in fields(CreditSettings)}, "similarity")
        credit = CreditSettings(**found)
        if not (credit.turn_returns and credit.turn_rewards):
            raise ConfigError("algorithm.gtpo: turn_rewards and turn_returns are for ablations under gtpo train only")
        return cls(credit, similarity)


@dataclass
class LoopOptions(ToolArguments, PromptArguments):
    """`options` of the agent loop's entry in the file `actor_rollout_ref.rollout.agent.agent_loop_config_path`.

    The names and meanings are those of `gtpo train`. The length of a rollout is verl's `rollout.response_length`.
    """

    max_turns: int = 8
    max_turn_tokens: int = 512
    max_observation_tokens: int = 512
    max_repeated_tokens: int = 256

    @classmethod
    def of(cls, options: Any) -> LoopOptions:
        """Read them.

        Raises:
            ConfigError: an unknown option or one that can't be used.
        """
        found = _plain(options)
        _check_known("options of the agent loop", found, {item.name for item in fields(cls)})
        return cls(**found)

    def limits(self, prompt_length: int, response_length: int, max_model_len: int | None = None) -> RolloutLimits:
        """Where a rollout ends at the latest.

        Args:
            prompt_length, response_length: verl's bounds, in tokens.
            max_model_len: the servers' longest context, if it is set.
        """
        longest = prompt_length + response_length
        return RolloutLimits(
            self.max_turns,
            self.max_turn_tokens,
            response_length,
            min(longest, max_model_len or longest),
            self.max_observation_tokens,
            self.max_repeated_tokens,
        )


def _plain(options: Any) -> dict[str, Any]:
    if isinstance(options, DictConfig):
        options = OmegaConf.to_container(options, resolve=True)
    if not isinstance(options, Mapping | None):
        raise ConfigError(f"the options of gtpo must be a mapping, got {options!r}")
    return {str(name): value for name, value in (options or {}).items()}


def _check_known(where: str, found: Mapping[str, Any], known: set[str], *more: str) -> None:
    if unknown := sorted(set(found) - known):
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(sorted({*known, *more}))}")
