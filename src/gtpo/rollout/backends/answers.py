"""What a model that generates has answered: taken if it can be what was asked for, refused otherwise.

One place for every backend, so that no NaN, no id outside of the vocabulary and no text in the place of a number comes
near a loss. What is refused is a failure of the server (`BadAnswerError`), never a short or an empty turn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from gtpo.errors import BadAnswerError
from gtpo.rollout.backends.base import Generation, Request

_ROUNDING = 1e-3
"""By which the log-probability of a certain token may be above 0."""
_OPEN_ENDS = ("length", "content_filter", "tool_calls", "function_call")
"""What OpenAI's API calls a text that did not end with an end token."""
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
    """The sampled ids of a turn as a `Generation`.

    Args:
        token_ids: what came back as ids.
        logprobs: what came back as the log-probability of each; None if none were asked for.
        request: what was asked for.
        source: what answered, for the message.
        end_ids: ids that end a turn; none of them may have another after it.
        vocabulary: number of ids that there are; None if it is not known.

    Raises:
        BadAnswerError: no ids, more than were asked for, one outside of the vocabulary, one after the end of the turn;
            log-probabilities that are not one finite number of at most 0 for each id.
    """
    ids = token_ids if isinstance(token_ids, (list, tuple)) else None
    if not ids:
        raise BadAnswerError(f"{source}: an answer without a token: {_shown(token_ids)}")
    if len(ids) > request.max_new_tokens:
        raise BadAnswerError(f"{source}: {len(ids)} tokens where at most {request.max_new_tokens} were asked for")
    for place, i in enumerate(ids):
        if type(i) is not int or i < 0 or (vocabulary is not None and i >= vocabulary):
            of = "" if vocabulary is None else f" of {vocabulary}"
            raise BadAnswerError(
                f"{source}: {_shown(i)} in the place of a token id (token {place}) is not in the vocabulary{of}"
            )
        if i in end_ids and place + 1 < len(ids):
            raise BadAnswerError(f"{source}: {len(ids) - place - 1} tokens after the end of the turn (id {i})")
    return Generation(tuple(ids), None if logprobs is None else _checked_logprobs(logprobs, len(ids), source))


def _checked_logprobs(logprobs: Any, count: int, source: str) -> tuple[float, ...]:
    if not isinstance(logprobs, (list, tuple)) or len(logprobs) != count:
        found = f"{len(logprobs)}" if isinstance(logprobs, (list, tuple)) else _shown(logprobs)
        raise BadAnswerError(f"{source}: log-probabilities for {count} tokens were asked for, and {found} came back")
    for place, value in enumerate(logprobs):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not _is_finite(value) or value > _ROUNDING:
            raise BadAnswerError(
                f"{source}: {_shown(value)} in the place of a log-probability (token {place}); it must be finite and "
                "at most 0. NaN may mean that the model's weights have diverged"
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
        raise BadAnswerError(f"{source}: {len(choices)} choices where one was asked for")
    return choices[0]


def ended_by_itself(choice: Mapping[str, Any], source: str) -> bool:
    """Whether a choice ended with an end token, and not at a limit.

    Raises:
        BadAnswerError: it was aborted, or does not say how it ended.
    """
    reason = choice.get("finish_reason")
    if reason != "stop" and reason not in _OPEN_ENDS:
        raise BadAnswerError(f"{source}: a text that ended by {_shown(reason)}, neither by stop nor by length")
    return reason == "stop"


def text_of(choice: Mapping[str, Any], chat: bool, source: str) -> str:
    """The text of a choice; of a chat that of its message.

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
