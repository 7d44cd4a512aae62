"""Limits of a rollout and the sampling distribution. Plain frozen dataclasses, checked when made."""

from __future__ import annotations

from dataclasses import dataclass

from gtpo.errors import ConfigError


@dataclass(frozen=True)
class RolloutLimits:
    """Limits of a rollout; each limit that ends it has its own `StopReason`.

    Attributes:
        max_turns: model turns per rollout.
        max_turn_tokens: sampled tokens per turn.
        max_completion_length: completion tokens per rollout: turns and observations together.
        max_context: prompt and completion tokens per rollout; None: the model's context length.
        max_observation_tokens: tokens of each call's result that the model sees; a longer result is cut in the middle.
        max_repeated_tokens: repeated tokens after which a turn counts as degenerate and is ended; 0: never.
        max_rollout_s: wall-clock seconds from the start of the rollout; None: no limit.
    """

    max_turns: int = 8
    max_turn_tokens: int = 512
    max_completion_length: int = 2048
    max_context: int | None = None
    max_observation_tokens: int = 512
    max_repeated_tokens: int = 256
    max_rollout_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_turn_tokens", "max_completion_length", "max_context", "max_observation_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.max_repeated_tokens < 0:
            raise ConfigError(f"max_repeated_tokens must be at least 0 (0: never), got {self.max_repeated_tokens}")
        if self.max_rollout_s is not None and not self.max_rollout_s > 0:
            raise ConfigError(f"max_rollout_s must be above 0, got {self.max_rollout_s}")


@dataclass(frozen=True)
class Sampling:
    """The sampling distribution. `temperature=0` is greedy decoding.

    Attributes:
        deterministic: an engine that has its own random number stream samples each turn from a seed instead.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be at least 0 (0: off), got {self.top_k}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p must be in [0, 1], got {self.min_p}")
        if self.repetition_penalty <= 0:
            raise ConfigError(f"repetition_penalty must be above 0 (1: off), got {self.repetition_penalty}")

    @property
    def greedy(self) -> bool:
        """Whether decoding is greedy."""
        return self.temperature == 0
