"""From chat messages to token ids, without ever rendering a conversation twice.

A rollout's context is: the prompt as the chat template renders it, then in turn what the model sampled and what the
template puts between the end of a turn and the place where the model goes on (the observation, framed). That frame
is taken from the template once, by comparing a small conversation with and without the observation. So a
history is never rendered again, and templates that rewrite history (dropping old thoughts, say) can't change what
was sampled. Cold-start traces are encoded by the same functions, so a trace and a rollout of the same text have the
same ids.

Text that came out of a tool is tokenised without special tokens, and without added ones that look like markup (such as
"<think>"): it can't close a message or open one, nor hold what the model knows as one token for a call or a thought.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from gtpo.errors import DataError, TemplateError
from gtpo.rollout.formats import ToolFormat
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn

Messages = Sequence[Mapping[str, Any]]

_USER, _TURN, _RESULT = "USER-TEXT", "MODEL-TEXT", "TOOL-TEXT"


class ChatEncoder:
    """Encodes prompts, observations and traces for one tokenizer and one tool format.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        tool_format: the tool-call syntax.
        end_ids: ids that end a turn; by default the tokenizer's end-of-sequence token.
        template_kwargs: passed on to `apply_chat_template` (e.g. `enable_thinking`).

    Raises:
        TemplateError: no chat template; one that ignores the tools the format needs; one in which a turn does not end
            with the end-of-turn token, or that can't continue after an observation.
    """

    def __init__(
        self,
        tokenizer: Any,
        tool_format: ToolFormat,
        *,
        end_ids: Sequence[int] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.tokenizer = tokenizer
        self.format = tool_format
        self.tools = tool_format.tools
        self.template_kwargs = dict(template_kwargs or {})
        where = f"the tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__!r}"
        if not getattr(tokenizer, "chat_template", None):
            raise TemplateError(
                f"{where} has no chat template. Use an instruction-tuned model, or put a chat_template.jinja into "
                "the model's folder."
            )
        if tokenizer.eos_token_id is None:
            raise TemplateError(f"{where} has no end-of-sequence token (eos_token), so a turn could never end.")
        self.end_id: int = tokenizer.eos_token_id
        self.end_ids = frozenset(end_ids or ()) | {self.end_id}
        if self.tools:
            probe = [{"role": "user", "content": _USER}]
            if self._render(probe, tools=self.tools) == self._render(probe, tools=None):
                raise TemplateError(
                    f"the chat template of {where} ignores tools, which the format {tool_format.name!r} needs. Use "
                    "--tool_format fenced, or a template that renders tools."
                )
        if tool_format.specs:
            self._frame_for([_RESULT])  # raises now rather than in the middle of a run

    def prompt_ids(self, messages: Messages) -> list[int]:
        """Ids of the conversation so far, up to where the model goes on."""
        return self._encode(self._render(messages, tools=self.tools))

    def observation_ids(self, results: Sequence[str]) -> list[int]:
        """Ids between a turn's end token and where the model goes on, given the results of the turn's calls."""
        ids: list[int] = []
        for piece, literal in self._frame_for(results):
            ids += self._encode_literal(piece) if literal else self._encode(piece)
        return ids

    def observation_messages(self, results: Sequence[str]) -> list[dict[str, Any]]:
        """The results of a turn's calls as chat messages, for servers that render conversations themselves."""
        return self.format.observation_messages([self.format.escape(result) for result in results])

    def shorten(self, result: str, max_tokens: int) -> str:
        """A result with its middle replaced by a note, at borders of tokens, if it has more than `max_tokens`."""
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
        """Decode one turn, without the end-of-turn token."""
        ids = list(token_ids)
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        return self.decode(ids)

    def parse(self, text: str) -> tuple[ToolCall | InvalidCall, ...]:
        """The calls of a turn, valid and invalid. Drafts within a thought are none, also where the prompt opened it."""
        return self.format.parse(f"<think>{text}" if self._opens_thought else text)

    @cached_property
    def _opens_thought(self) -> bool:
        probe = [{"role": "user", "content": _USER}]
        return self._render(probe, tools=self.tools).rstrip().endswith("<think>")

    def ended(self, token_ids: Sequence[int]) -> bool:
        """Whether a turn was ended by the model."""
        return bool(token_ids) and token_ids[-1] in self.end_ids

    def trace(self, messages: Messages) -> Trajectory:
        """Encode a whole conversation as the rollout that would have produced it.

        Roles: any prompt, then `assistant` turns with one or more `tool` messages between them, each the bare result
        of a call. Assistant text must be as the model should write it, calls included.

        Raises:
            DataError: no assistant turn, two turns without an observation between them, or an unknown role.
        """
        first = next((i for i, m in enumerate(messages) if m.get("role") == "assistant"), None)
        if first is None or messages[-1].get("role") != "assistant":
            raise DataError("a trace must hold assistant messages, and end with one", field="messages")
        turns: list[Turn] = []
        pending: list[str] = []
        for message in messages[first:]:
            role, content = message.get("role"), message.get("content")
            if not isinstance(content, str):
                raise DataError(f"the content of a {role} message is not a string", field="messages")
            if role == "tool":
                pending.append(content)
            elif role != "assistant":
                raise DataError(f"unexpected role {role!r} after the first assistant message", field="messages")
            else:
                if turns and not pending:
                    raise DataError("two assistant messages without a tool message between them", field="messages")
                if turns:
                    turns[-1] = self._observed(turns[-1], pending)
                    pending = []
                turns.append(self._turn(content))
        return Trajectory(tuple(self.prompt_ids(messages[:first])), tuple(turns), StopReason.ANSWER)

    def _turn(self, content: str) -> Turn:
        ids = (*self._encode(content), self.end_id)
        return Turn(text=content, token_ids=ids, calls=self.parse(content))

    def _observed(self, turn: Turn, results: Sequence[str]) -> Turn:
        ids = tuple(self.observation_ids(results))
        return replace(turn, observation=Observation("\n".join(results), ("ok",) * len(results), ids))

    def _render(self, messages: Messages, *, tools: Any, generate: bool = True) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tools=tools,
                tokenize=False,
                add_generation_prompt=generate,
                **self.template_kwargs,
            )
        except Exception as error:  # jinja raises its own tree of errors, and templates raise on purpose
            roles = [m.get("role") for m in messages]
            raise TemplateError(f"the chat template can't render messages with the roles {roles}: {error}") from error

    @cached_property
    def _history(self) -> tuple[list[dict[str, Any]], str]:
        """A minimal conversation, and its last turn as the template writes it: from its text to its end token."""
        turn: dict[str, Any] = {"role": "assistant", "content": _TURN}
        if self.tools:
            spec = self.format.specs[0]
            function = {"name": spec.name, "arguments": {spec.required[0]: "1"}}
            turn["tool_calls"] = [{"type": "function", "function": function}]
        history = [{"role": "user", "content": _USER}, turn]
        rendered = self._render(history, tools=self.tools, generate=False)
        end = self.tokenizer.convert_ids_to_tokens(self.end_id)
        if _TURN not in rendered:
            raise TemplateError(
                "the chat template drops the text of a turn that makes a call; use --tool_format fenced, which needs "
                "no help from it"
            )
        head, found, _ = rendered[rendered.index(_TURN) :].rpartition(end)
        if not found:
            raise TemplateError(f"the chat template does not end an assistant turn with {end!r}, the eos token")
        return history, head + end

    def _frame_for(self, results: Sequence[str]) -> list[tuple[str, bool]]:
        """Split what follows a turn into (text, is literal tool output)."""
        history, prefix = self._history
        marks = [f"{_RESULT}-{i}" for i in range(len(results))]
        rendered = self._render([*history, *self.format.observation_messages(marks)], tools=self.tools)
        rendered = rendered[max(rendered.find(_TURN), 0) :]  # what is before a turn's text may change with its place
        if not rendered.startswith(prefix):
            raise TemplateError("the chat template renders a turn differently once an observation follows it")
        frame, pieces = rendered[len(prefix) :], []
        for mark, result in zip(marks, results, strict=True):
            before, found, frame = frame.partition(mark)
            if not found:
                raise TemplateError("the chat template drops or changes the content of observations")
            pieces += [(before, False), (self.format.escape(result), True)]
        return [*pieces, (frame, False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids as text, special tokens and spaces as they are."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def _encode_literal(self, text: str) -> list[int]:
        """Encode text in which no markup may come up, by cutting each one that would after its first character."""
        starts = [match.start() + 1 for match in self._markup.finditer(text)] if self._markup else []
        pieces = [text[i:j] for i, j in pairwise([0, *starts, len(text)]) if i < j]
        encoded = (self.tokenizer(p, add_special_tokens=False, split_special_tokens=True) for p in pieces)
        return [i for encoding in encoded for i in encoding["input_ids"]]

    @cached_property
    def _markup(self) -> re.Pattern[str] | None:
        """Matches, empty, wherever an added token in <> or [] begins; None if there is none."""
        added = {str(token) for token in self.tokenizer.get_added_vocab()}
        markup = sorted(re.escape(token) for token in added if re.fullmatch(r"<.+>|\[.+\]", token))
        return re.compile(f"(?={'|'.join(markup)})") if markup else None


def _note(characters: int) -> str:
    return f"\n[... {characters} characters cut ...]\n"
