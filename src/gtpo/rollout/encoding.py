"""From chat messages to token ids, without ever rendering a conversation twice.

A rollout's context is the prompt, followed alternately by what the model sampled and by what comes between the end of a
turn and the place where the model continues (the observation or a user's reply, framed). The rest of the project only
uses `Encoder`, which has two implementations: `gtpo.rollout.native.RendererEncoder` for the families that the library
`renderers` has, and `gtpo.rollout.chat_encoder.ChatEncoder` for every other chat template. Cold-start traces are
encoded by the same functions, so a trace and a rollout of the same text have the same ids.

Text from a tool or an environment is tokenised without special tokens, and without added tokens that look like markup
(such as "<think>"): it can't close a message or open one, and it can't contain a token that the model uses for a call
or a thought.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from gtpo._text import well_formed
from gtpo.errors import DataError
from gtpo.rollout.formats import ToolFormat
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn

Messages = Sequence[Mapping[str, Any]]
Calls = tuple[ToolCall | InvalidCall, ...]


class Encoder(ABC):
    """Converts between chat messages and token ids, for one tokenizer and one tool format.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        format: the tool-call syntax.
        tools: schemas of the tools as they are in the prompt, or None.
        template_kwargs: options of the chat template.
        end_ids: ids that end a turn.
        end_id: the id with which the template ends a turn without a call.
        choice: which format was chosen, and why, in one line.
    """

    format: ToolFormat
    end_ids: frozenset[int]
    end_id: int
    choice: str

    def __init__(self, tokenizer: Any, tool_format: ToolFormat, template_kwargs: Mapping[str, Any] | None) -> None:
        self.tokenizer = tokenizer
        self.format = tool_format
        self.tools = tool_format.tools
        self.template_kwargs = dict(template_kwargs or {})
        self.choice = tool_format.name
        self._decoded: tuple[tuple[int, ...] | None, str] = (None, "")

    @abstractmethod
    def prompt_ids(self, messages: Messages) -> list[int]:
        """Ids of the conversation so far, up to where the model continues."""

    @abstractmethod
    def parse_turn(self, token_ids: Sequence[int], context: Sequence[int] = ()) -> Calls:
        """The calls of a turn, valid and invalid, in order. Drafts within a thought do not count.

        Args:
            token_ids: the turn, with or without its end-of-turn token.
            context: the ids before it, which may have opened a thought.
        """

    @abstractmethod
    def observation_ids(
        self, results: Sequence[str], turn_ids: Sequence[int] = (), context: Sequence[int] = ()
    ) -> list[int]:
        """Ids between a turn's end token and where the model continues.

        Args:
            results: one for each call of the turn, in order.
            turn_ids: the turn, with its end token; by default any turn that makes a call.
            context: the ids before the turn.
        """

    @abstractmethod
    def reply_ids(self, text: str, turn_ids: Sequence[int] = (), context: Sequence[int] = ()) -> list[int]:
        """Ids between the end token of a turn without a call and where the model continues after a user's reply.

        Args:
            text: the reply.
            turn_ids: the turn, with its end token; by default any turn without a call.
            context: the ids before the turn.
        """

    @abstractmethod
    def check_replies(self) -> None:
        """Prepare for replies. A turn then ends with the template's own end token, even if there are no tools.

        Raises:
            TemplateError: the chat template can't continue after a user's reply.
        """

    def end_of(self, calls: Calls) -> int:
        """The id with which the template ends a turn with these calls."""
        return self.end_id

    def parse(self, text: str) -> Calls:
        """The calls of a turn that is given as text, after a prompt."""
        return self.parse_turn(self._encode(text))

    def observation_messages(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """The results of a turn's calls as chat messages, for servers that render conversations themselves."""
        return self.format.observation_messages([self.format.escape(result) for result in results])

    def shorten(self, result: str, max_tokens: int) -> str:
        """A result; if it has more than `max_tokens`, its middle is replaced by a note, at token boundaries."""
        window = 16 * max_tokens
        if len(result) <= 2 * window and len(self._encode_literal(result)) <= max_tokens:
            return result
        keep = max_tokens - len(self._encode_literal(_note(len(result))))
        head_ids, tail_ids = self._encode_literal(result[:window]), self._encode_literal(result[-window:])
        while True:
            keep = max(0, keep)
            head = self.decode(head_ids[: keep - keep // 2]).rstrip("\ufffd")
            tail = self.decode(tail_ids[len(tail_ids) - keep // 2 :]).lstrip("\ufffd")
            shortened = head + _note(len(result) - len(head) - len(tail)) + tail
            excess = len(self._encode_literal(shortened)) - max_tokens
            if excess <= 0 or not keep:
                return shortened
            keep -= excess

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode one turn, without the end-of-turn token. The text of the last tuple is kept: it is read next."""
        if not isinstance(token_ids, tuple):
            return self.decode(self._without_end(token_ids))
        if self._decoded[0] is not token_ids:
            self._decoded = token_ids, self.decode(self._without_end(token_ids))
        return self._decoded[1]

    def ended(self, token_ids: Sequence[int]) -> bool:
        """Whether the model ended a turn."""
        return bool(token_ids) and token_ids[-1] in self.end_ids

    def trace(self, messages: Messages) -> Trajectory:
        """Encode a whole conversation as the rollout that would have produced it.

        Roles: any prompt, then `assistant` turns, and between two of them either one or more `tool` messages, each the
        bare result of a call, or one `user` message, the reply to a turn without a call. Assistant text must be as the
        model should write it after the prompt, calls included; `ToolFormat.render_turn` writes it.

        Raises:
            DataError: no assistant turn, two turns with nothing between them, an unknown role, or a reply beside
                another message or to a turn with a call.
        """
        first = next((i for i, m in enumerate(messages) if m.get("role") == "assistant"), None)
        if first is None or messages[-1].get("role") != "assistant":
            raise DataError("a trace must have assistant messages, and end with one", field="messages")
        prompt_ids = self.prompt_ids(messages[:first])
        context = list(prompt_ids)
        turns: list[Turn] = []
        pending: list[tuple[str, str]] = []
        for message in messages[first:]:
            role, content = message.get("role"), message.get("content")
            if not isinstance(content, str):
                raise DataError(f"the content of a {role} message is not a string", field="messages")
            if role in ("tool", "user"):
                pending.append((str(role), content))
            elif role != "assistant":
                raise DataError(f"unexpected role {role!r} after the first assistant message", field="messages")
            else:
                if turns and not pending:
                    raise DataError("two assistant messages without a tool message between them", field="messages")
                if turns:
                    turns[-1] = self._observed(turns[-1], pending, context)
                    context += turns[-1].observation.token_ids if turns[-1].observation else ()
                    pending = []
                turns.append(self._turn(content, context))
                context += turns[-1].token_ids
        return Trajectory(tuple(prompt_ids), tuple(turns), StopReason.ANSWER)

    def _turn(self, content: str, context: Sequence[int]) -> Turn:
        ids = self._encode(content)
        calls = self.parse_turn(ids, context)
        return Turn(text=content, token_ids=(*ids, self.end_of(calls)), calls=calls)

    def _observed(self, turn: Turn, pending: Sequence[tuple[str, str]], context: Sequence[int]) -> Turn:
        """The turn with the messages that follow it, each a role and a text."""
        before = context[: len(context) - len(turn.token_ids)]
        results = [text for _, text in pending]
        if all(role == "tool" for role, _ in pending):
            ids = tuple(self.observation_ids(results, turn.token_ids, before))
            return replace(turn, observation=Observation("\n".join(results), ("ok",) * len(results), ids))
        if len(pending) > 1 or turn.calls:
            raise DataError(
                "a user message must follow an assistant message without a call, as the only message before the next "
                "assistant message",
                field="messages",
            )
        return replace(turn, observation=self.reply(results[0], turn.token_ids, before))

    def reply(self, text: str, turn_ids: Sequence[int], context: Sequence[int]) -> Observation:
        """A user's reply to a turn without a call; see `reply_ids`."""
        return Observation(text, (), tuple(self.reply_ids(text, turn_ids, context)), results=(text,), role="user")

    def decode(self, ids: Sequence[int]) -> str:
        """Ids as text, with special tokens and spaces unchanged."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _without_end(self, token_ids: Sequence[int]) -> list[int]:
        ids = list(token_ids)
        return ids[:-1] if ids and ids[-1] in self.end_ids else ids

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(well_formed(text), add_special_tokens=False) if text else []

    def _encode_literal(self, text: str) -> list[int]:
        """Encode text in which no markup may occur, by cutting each piece of markup after its first character."""
        encoded = (
            self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)
            for piece in self._pieces(well_formed(text))
        )
        return [i for encoding in encoded for i in encoding["input_ids"]]

    def _pieces(self, text: str) -> list[str]:
        """The text cut after the first character of each piece of markup."""
        starts = [match.start() + 1 for match in self._markup.finditer(text)] if self._markup else []
        return [text[i:j] for i, j in pairwise([0, *starts, len(text)]) if i < j]

    @cached_property
    def _markup(self) -> re.Pattern[str] | None:
        """Matches, empty, wherever a special token begins, or an added one in <> or []; None if there is none."""
        added = self.tokenizer.added_tokens_decoder.values()
        found = {str(t) for t in added if t.special or re.fullmatch(r"<.+>|\[.+\]", str(t))}
        markup = sorted(re.escape(token) for token in found if token.strip())
        return re.compile(f"(?={'|'.join(markup)})") if markup else None

    @cached_property
    def _special_tokens(self) -> re.Pattern[str] | None:
        """Matches a special token."""
        added = self.tokenizer.added_tokens_decoder
        specials = sorted((re.escape(str(token)) for token in added.values() if token.special), key=len, reverse=True)
        return re.compile("|".join(specials)) if specials else None


def _note(characters: int) -> str:
    return f"\n[... {characters} characters cut ...]\n"
