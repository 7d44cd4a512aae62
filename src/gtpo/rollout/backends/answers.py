"""Checks the answers of generating models: an answer is accepted only if it can be what was requested.

All backends share these checks, so that no NaN, no id outside of the vocabulary and no text in place of a number
reaches a loss. A refused answer is a failure of the server (`BadAnswerError`), never a short or an empty turn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from gtpo.errors import BadAnswerError
from gtpo.rollout.backends.base import Generation, Request

_ROUNDING = 1e-3
"""How far rounding may put the log-probability of a certain token above 0."""
_OPEN_ENDS = ("length", "content_filter", "tool_calls", "function_call")
"""Finish reasons in OpenAI's API of a text that did not end with an end token."""
_SAID_CHARS = 200


def checked_generation(
    token_ids: Any,
    logprobs: Any,
    request: Request,
    *,
    source: str,
    end_ids: Collection[int] = (),
    vocabulary: int | None = None,
) -> Generation:
    """Check the sampled ids of a turn, and return them as a `Generation`.

    Args:
        token_ids: the ids that came back.
        logprobs: the log-probability of each id that came back; None if none were requested.
        request: the request.
        source: who answered, for the message.
        end_ids: ids that end a turn; no id may follow one of them.
        vocabulary: number of ids in the vocabulary; None if it is not known.

    Raises:
        BadAnswerError: no ids, more than were requested, one outside of the vocabulary, or one after the end of the
            turn; log-probabilities that are not one finite number of at most 0 for each id.
    """
    ids = token_ids if isinstance(token_ids, (list, tuple)) else None
    if not ids:
        raise BadAnswerError(f"{source}: an answer without a token: {_shown(token_ids)}")
    if len(ids) > request.max_new_tokens:
        raise BadAnswerError(f"{source}: {len(ids)} tokens, but at most {request.max_new_tokens} were requested")
    for place, i in enumerate(ids):
        if type(i) is not int or i < 0 or (vocabulary is not None and i >= vocabulary):
            of = "" if vocabulary is None else f" of {vocabulary}"
            raise BadAnswerError(
                f"{source}: {_shown(i)} is not a valid token id (token {place} of the turn): it is not in the "
                f"vocabulary{of}"
            )
        if i in end_ids and place + 1 < len(ids):
            raise BadAnswerError(
                f"{source}: the end of the turn (id {i}) is followed by more tokens ({len(ids) - place - 1})"
            )
    return Generation(tuple(ids), None if logprobs is None else _checked_logprobs(logprobs, len(ids), source))


def _checked_logprobs(logprobs: Any, count: int, source: str) -> tuple[float, ...]:
    if not isinstance(logprobs, (list, tuple)) or len(logprobs) != count:
        found = f"{len(logprobs)}" if isinstance(logprobs, (list, tuple)) else _shown(logprobs)
        raise BadAnswerError(f"{source}: log-probabilities for {count} tokens were requested, but {found} came back")
    for place, value in enumerate(logprobs):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not _is_finite(value) or value > _ROUNDING:
            raise BadAnswerError(
                f"{source}: {_shown(value)} is not a valid log-probability (token {place} of the turn); it must "
                "be finite and at most 0. NaN may mean that the model's weights have diverged"
            )
    return tuple(float(value) for value in logprobs)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def only_choice(answer: Any, source: str) -> Mapping[str, Any]:
    """The one choice in an answer of OpenAI's API.

    Raises:
        BadAnswerError: there is none, or several.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise BadAnswerError(f"{source}: an answer without choices: {_shown(answer)}")
    if len(choices) != 1:
        raise BadAnswerError(f"{source}: {len(choices)} choices, but one was requested")
    return choices[0]


def ended_by_itself(choice: Mapping[str, Any], source: str) -> bool:
    """Whether a choice ended with an end token, not at a limit.

    Raises:
        BadAnswerError: it was aborted, or does not say how it ended.
    """
    reason = choice.get("finish_reason")
    if reason != "stop" and reason not in _OPEN_ENDS:
        raise BadAnswerError(f"{source}: the finish reason of a text is {_shown(reason)}, neither stop nor length")
    return reason == "stop"


def text_of(choice: Mapping[str, Any], chat: bool, source: str) -> str:
    """The text of a choice; for a chat, the text of its message.

    Raises:
        BadAnswerError: there is none.
    """
    message = choice.get("message") if chat else choice
    text = message.get("content" if chat else "text", 0) if isinstance(message, dict) else 0
    if text is not None and not isinstance(text, str):
        raise BadAnswerError(f"{source}: an answer without text: {_shown(choice)}")
    return text or ""


def _shown(value: Any) -> str:
    return ascii(value)[:_SAID_CHARS]
