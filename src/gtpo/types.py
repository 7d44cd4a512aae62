"""The types of a rollout: turns, calls, observations, trajectories. All are frozen and only offer views of their data.

A *turn* is what the model generates between two observations: its reasoning, its tool calls if it makes any, and
its end-of-turn token. An *observation* is what the tool, with the chat template around it, puts into the context.
Token ids are kept as they were sampled; nothing is ever decoded and tokenised again.

Tensor suffixes, used throughout the project: `_B` rollouts in the batch, `_G` rollouts in a group, `_K` turns
(padded), `_T` tokens (padded).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class StopReason(StrEnum):
    """Why a rollout ended. `gtpo.rollout.loop` documents the order in which the reasons are checked."""

    ANSWER = "answer"
    """The model ended a turn that holds no tool call: the turn is its final answer."""
    TURN_TOKENS = "turn_tokens"
    """A turn reached the limit of tokens per turn before it ended."""
    TOTAL_TOKENS = "total_tokens"
    """The completion (turns and observations) reached its limit of tokens."""
    CONTEXT = "context"
    """Prompt and completion reached the model's context length."""
    TURNS = "turns"
    """The last allowed turn made a tool call; it was not carried out."""
    REPETITION = "repetition"
    """A turn repeated the same few tokens over and over and was ended there."""
    TIME = "time"
    """The rollout had not finished after `max_rollout_s`."""
    FINAL = "final"
    """A tool ended the rollout; its result is the final answer."""
    DONE = "done"
    """The environment was done after the turn; the turn is the final answer."""
    TOOL_FAILURE = "tool_failure"
    """A tool itself failed, such as the sandbox. An error of the code that it ran does not count."""
    ENVIRONMENT_FAILURE = "environment_failure"
    """The environment itself failed: its `reset`, `respond`, `get_reward` or the like raised or did not return."""
    MODEL_FAILURE = "model_failure"
    """The generation backend failed: its server did not answer, or answered nonsense."""
    PROMPT_TOO_LONG = "prompt_too_long"
    """The prompt leaves no room in the context. Such problems are left out before a run; this one was not."""

    @property
    def is_failure(self) -> bool:
        """Whether something around the model failed. Such a rollout is masked: neither scored nor trained on."""
        return self in _FAILURES


_FAILURES = {
    StopReason.TOOL_FAILURE,
    StopReason.ENVIRONMENT_FAILURE,
    StopReason.MODEL_FAILURE,
    StopReason.PROMPT_TOO_LONG,
}


@dataclass(frozen=True)
class ToolCall:
    """A call that can be carried out.

    Attributes:
        code: the program; for a tool other than Python, the call as an expression, `search(query='...')`.
        name: the tool's name.
        arguments: for a tool other than Python, its arguments by name.
    """

    code: str
    name: str = "python"
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class InvalidCall:
    """A call that can't be carried out, and the reason that the model is told."""

    reason: str

    @property
    def observation(self) -> str:
        """The text that the model gets in place of a result."""
        return f"Invalid call: {self.reason}."


@dataclass(frozen=True)
class Observation:
    """What came back after a turn's calls.

    Attributes:
        text: the text shown to the model, without the chat template around it.
        statuses: one entry per call, in order: the sandbox's status, or "invalid".
        token_ids: the ids appended to the context: the text and the template around it, up to where the model
            continues.
        wall_s: seconds from the end of the turn to the last result.
        results: the text of each call's result, in order; or the environment's one reply.
        role: "tool" for results of calls; "user" for an environment's reply to a turn without a call.
    """

    text: str
    statuses: tuple[str, ...]
    token_ids: tuple[int, ...]
    wall_s: float = 0.0
    results: tuple[str, ...] = ()
    role: str = "tool"


@dataclass(frozen=True)
class Turn:
    """One turn of the model, with the observation that followed it (None after the last turn).

    Attributes:
        text: the decoded turn, without its end-of-turn token, for people, parsers and verifiers.
        token_ids: the sampled ids, including the end-of-turn token if it was sampled.
        calls: valid and invalid calls in the order in which they occur in the turn.
        logprobs: log-probability of each sampled token under the sampling policy, if the backend returns them.
        token_exact: whether the ids are those that were sampled; False if a server returned text, tokenised here.
        reward: the reward of the rollout's environment for the turn; None if it gives none.
    """

    text: str
    token_ids: tuple[int, ...]
    calls: tuple[ToolCall | InvalidCall, ...] = ()
    observation: Observation | None = None
    logprobs: tuple[float, ...] | None = None
    token_exact: bool = True
    reward: float | None = None

    @property
    def valid_calls(self) -> tuple[ToolCall, ...]:
        """The calls that can be carried out."""
        return tuple(call for call in self.calls if isinstance(call, ToolCall))

    @property
    def invalid_calls(self) -> tuple[InvalidCall, ...]:
        """The calls that can't."""
        return tuple(call for call in self.calls if isinstance(call, InvalidCall))


@dataclass(frozen=True)
class Trajectory:
    """One rollout: a prompt, its turns, and why it ended.

    Attributes:
        prompt_ids: ids of the prompt, at least one.
        turns: at least one. A rollout that failed before its first turn has one empty turn with only an end token.
        stop_reason: why it ended.
        note: for a failure, what failed; for logs.
        reward: the outcome reward of the rollout's environment; None if it gives none.
        prompt_suffix: the text that the environment's `reset` appended to the prompt.
    """

    prompt_ids: tuple[int, ...]
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    note: str = ""
    reward: float | None = None
    prompt_suffix: str = ""

    def asked(self, prompt: Any) -> Any:
        """A prompt, as text or chat messages, with the text that the rollout's environment appended to it."""
        if not self.prompt_suffix:
            return prompt
        if isinstance(prompt, str):
            return prompt + self.prompt_suffix
        return [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + self.prompt_suffix}]

    @property
    def completion_ids(self) -> list[int]:
        """Ids of turns and observations in order: what follows the prompt."""
        return [i for turn in self.turns for i in (*turn.token_ids, *_observed(turn))]

    @property
    def token_exact(self) -> bool:
        """Whether every id of every turn was sampled; only then may the rollout be trained on."""
        return all(turn.token_exact for turn in self.turns)

    @property
    def turn_ids(self) -> list[int]:
        """For each completion id, the 0-based turn in which it was sampled, or -1 for observation tokens."""
        return [
            k
            for j, turn in enumerate(self.turns)
            for k in (*(j for _ in turn.token_ids), *(-1 for _ in _observed(turn)))
        ]

    @property
    def mask(self) -> list[int]:
        """For each completion id, 1 if the model sampled it, else 0."""
        return [int(k >= 0) for k in self.turn_ids]

    @property
    def logprobs(self) -> list[float] | None:
        """For each completion id, its log-probability under the sampling policy (0 for observation tokens)."""
        logprobs: list[float] = []
        for turn in self.turns:
            if turn.logprobs is None:
                return None
            logprobs += [*turn.logprobs, *(0.0 for _ in _observed(turn))]
        return logprobs

    @property
    def code(self) -> str:
        """The code of all turns' valid calls, concatenated in order: c_i of docs/algorithm.md, "Reward shaping"."""
        return "\n".join(call.code for turn in self.turns for call in turn.valid_calls)

    @property
    def num_calls(self) -> int:
        """Number of calls in all turns, valid or not."""
        return sum(len(turn.calls) for turn in self.turns)

    @property
    def num_invalid_calls(self) -> int:
        """Number of invalid calls in all turns."""
        return sum(len(turn.invalid_calls) for turn in self.turns)

    @property
    def answer_text(self) -> str | None:
        """The final answer: the last turn's text, or the result of the tool that ended the rollout; None if cut off."""
        last = self.turns[-1]
        if self.stop_reason is StopReason.FINAL and last.observation:
            return last.observation.text
        return last.text if self.stop_reason in (StopReason.ANSWER, StopReason.DONE) else None

    def show(self) -> None:
        """Display the rollout: HTML in a notebook, text on a terminal."""
        from gtpo.show import show  # what displays knows these types

        show(self)

    def __str__(self) -> str:
        from gtpo.show import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from gtpo.show import as_html

        return as_html(self)


def _observed(turn: Turn) -> tuple[int, ...]:
    return turn.observation.token_ids if turn.observation else ()
