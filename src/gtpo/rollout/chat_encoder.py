"""An encoder for chat templates that no renderer of the library `renderers` supports.

The frames of an observation and of a user's reply are taken from the template once, by comparing a small conversation
with and without them. So a history is never rendered again, and templates that rewrite history (by dropping old
thoughts, for example) can't change what was sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from gtpo.errors import TemplateError
from gtpo.rollout.chat_template import ChatTemplate, shared_length
from gtpo.rollout.encoding import Calls, Encoder, Messages
from gtpo.rollout.formats import ToolFormat
from gtpo.rollout.tool_spec import typical
from gtpo.types import ToolCall

_USER, _TURN, _CALL, _RESULT, _REPLY = "USER-TEXT", "MODEL-TEXT", "CALL-TEXT", "TOOL-TEXT", "REPLY-TEXT"
_PLAIN = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _TURN}]
"""A minimal conversation that ends with a turn without a call."""


class ChatEncoder(Encoder):
    """An encoder that puts what was sampled into the frames of a chat template.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        tool_format: the tool-call syntax.
        end_ids: ids that end a turn, besides the tokenizer's end-of-sequence token and the template's own.
        template_kwargs: passed on to `apply_chat_template` (e.g. `enable_thinking`).

    Raises:
        TemplateError: there is no chat template; it ignores the tools that the format needs, or writes calls in another
            syntax; its turns do not end with a special token, or it can't continue after an observation.
    """

    def __init__(
        self,
        tokenizer: Any,
        tool_format: ToolFormat,
        *,
        end_ids: Iterable[int] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        super().__init__(tokenizer, tool_format, template_kwargs)
        self._frames: dict[int, list[str]] = {}
        self._given_ends = frozenset(end_ids)
        where = f"the tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__!r}"
        if not getattr(tokenizer, "chat_template", None):
            raise TemplateError(
                f"{where} has no chat template. Use an instruction-tuned model, or put a chat_template.jinja into "
                "the model's folder."
            )
        if tokenizer.eos_token_id is None:
            raise TemplateError(f"{where} has no end-of-sequence token (eos_token), so a turn could never end.")
        self.end_id = self._end_of_call = tokenizer.eos_token_id
        self._template = ChatTemplate(tokenizer, self.tools, self.template_kwargs)
        if self.tools and self._template.ignores_tools():
            raise TemplateError(
                f"the chat template of {where} ignores tools, which the format {tool_format.name!r} needs. Use "
                "--tool_format fenced, or a template that renders tools."
            )
        if tool_format.specs:
            if self.tools:
                self._check_calls()
            self._frame_for([_RESULT])  # raises now rather than in the middle of a run
            self.end_id = self._plain_ending[0] if self.tools else self._ending[0]
            self._end_of_call = self._ending[0]
        self._set_ends()

    def _set_ends(self) -> None:
        self.end_ids = self._given_ends | {self.tokenizer.eos_token_id, self.end_id, self._end_of_call}

    def end_of(self, calls: Calls) -> int:
        """See `Encoder.end_of`."""
        return self._end_of_call if calls else self.end_id

    def prompt_ids(self, messages: Messages) -> list[int]:
        """See `Encoder.prompt_ids`."""
        return self._encode(self._template.render(messages))

    def observation_ids(
        self, results: Sequence[str], turn_ids: Sequence[int] = (), context: Sequence[int] = ()
    ) -> list[int]:
        """See `Encoder.observation_ids`. The frame is the same after every turn."""
        return self._encode_pieces(self._frame_for(results))

    def reply_ids(self, text: str, turn_ids: Sequence[int] = (), context: Sequence[int] = ()) -> list[int]:
        """See `Encoder.reply_ids`. The frame is the same after every turn."""
        before, after = self._reply_frame
        return self._encode_pieces([(before, False), (text, True), (after, False)])

    def check_replies(self) -> None:
        """See `Encoder.check_replies`."""
        _ = self._reply_frame
        self.end_id = self._plain_ending[0]
        self._set_ends()

    def _encode_pieces(self, pieces: Sequence[tuple[str, bool]]) -> list[int]:
        """Ids of a frame in pieces of (text, is literal)."""
        if self.tools:  # as the template does it, in one go but for markup in results
            return [i for piece in _cut(pieces, self._pieces) for i in self._encode(piece)]
        return [i for piece, literal in pieces for i in (self._encode_literal if literal else self._encode)(piece)]

    def parse_turn(self, token_ids: Sequence[int], context: Sequence[int] = ()) -> Calls:
        """See `Encoder.parse_turn`. What was sampled is read as text, as servers do."""
        return self.parse(self.text(token_ids))

    def parse(self, text: str) -> Calls:
        """The calls of a turn. Drafts within a thought do not count, even if the prompt opened the thought."""
        return self.format.parse(f"<think>{text}" if self._opens_thought else text)

    @cached_property
    def _opens_thought(self) -> bool:
        return self._template.render([{"role": "user", "content": _USER}]).rstrip().endswith("<think>")

    def _check_calls(self) -> None:
        """Check that the format reads a call as the template writes it."""
        written = self._template.written_turn("", self._call)
        if not any(isinstance(call, ToolCall) for call in self.format.parse(written)):
            raise TemplateError(
                f"the chat template writes a call as {written!r}, which the format {self.format.name!r} does not read. "
                "Use --tool_format auto, or fenced, which needs no help from the template"
            )

    @property
    def _argument(self) -> Any:
        """The argument of the call in a history: a text that can be found again, if the argument may be a text."""
        sample = typical(self.format.specs).sample
        return _CALL if isinstance(sample, str) else sample

    @property
    def _call(self) -> dict[str, Any]:
        spec = typical(self.format.specs)
        return {"name": spec.name, "arguments": spec.arguments(self._argument)}

    @cached_property
    def _history(self) -> tuple[list[dict[str, Any]], str]:
        """A minimal conversation that ends with a turn, with a call if the template writes any, and a text in it."""
        question = {"role": "user", "content": _USER}
        if not self.tools:
            return _PLAIN, _TURN
        text, anchor = ("", _CALL) if self._argument == _CALL else (_TURN, _TURN)
        return [question, self._template.calling(text, self._call)], anchor

    @cached_property
    def _ending(self) -> tuple[int, str]:
        """The token that ends a turn, and what the template writes from the turn's text or call to that token."""
        history, anchor = self._history
        return self._ending_of(history, anchor, self._after_turn([_RESULT]))

    @cached_property
    def _plain_ending(self) -> tuple[int, str]:
        """The token that ends a turn without a call, and what the template writes from the turn's text to it."""
        return self._ending_of(_PLAIN, _TURN, self._after_plain_turn)

    @cached_property
    def _after_plain_turn(self) -> str:
        """The conversation from the text of a turn without a call on, with a reply and the generation prompt."""
        rendered = self._template.render([*_PLAIN, {"role": "user", "content": _REPLY}])
        return rendered[max(rendered.rfind(_TURN), 0) :]

    @cached_property
    def _reply_frame(self) -> tuple[str, str]:
        """What the template puts between a turn without a call and a reply, and after the reply."""
        _, prefix = self._plain_ending
        if not self._after_plain_turn.startswith(prefix):
            raise TemplateError("the chat template renders a turn differently once a user's message follows it")
        before, found, after = self._after_plain_turn[len(prefix) :].partition(_REPLY)
        if not found:
            raise TemplateError("the chat template drops or changes the text of a user's message after a turn")
        return before, after

    def _ending_of(self, history: Messages, anchor: str, followed: str) -> tuple[int, str]:
        """The token that ends the last turn of a history, and what is before it once something follows.

        It is the end-of-sequence token if the turn ends with it; else the last special token that is there with and
        without a message after the turn; and if a turn has none, the first one of what follows it.
        """
        alone = self._template.render(history, generate=False)
        if anchor not in alone:
            raise TemplateError("the chat template drops the text of a turn")
        alone = alone[alone.rindex(anchor) :]
        eos = self.tokenizer.convert_ids_to_tokens(self.tokenizer.eos_token_id)
        shared = alone[: shared_length(alone, followed)]
        ends = list(self._special_tokens.finditer(followed)) if self._special_tokens else []
        cut = next((match for match in ends if match.start() < len(shared) < match.end()), None)
        shared = shared[: cut.start()] if cut else shared
        if eos in shared:
            return self.tokenizer.eos_token_id, shared[: shared.rindex(eos) + len(eos)]
        within = [match for match in ends if match.end() <= len(shared)]
        after = [match for match in ends if match.start() == len(shared)]
        match = within[-1] if within else after[0] if after else None
        if match is None and eos in alone:
            raise TemplateError("the chat template renders a turn differently once an observation follows it")
        if match is None:
            raise TemplateError(f"the chat template does not end an assistant turn with {eos!r}, the eos token")
        if not within and alone.startswith(eos, len(shared)):
            return self.tokenizer.eos_token_id, followed[: match.end()]
        return self.tokenizer.convert_tokens_to_ids(match[0]), followed[: match.end()]

    def _after_turn(self, marks: Sequence[str]) -> str:
        """The conversation from its turn's text or call on: what is before may change with the turn's position."""
        history, anchor = self._history
        rendered = self._template.render([*history, *self.format.observation_messages(marks)])
        return rendered[max(rendered.rfind(anchor), 0) :]

    def _frame_for(self, results: Sequence[str]) -> list[tuple[str, bool]]:
        """Split what follows a turn into (text, is literal tool output)."""
        count = len(results)
        if count not in self._frames:
            self._frames[count] = self._frame_of([f"{_RESULT}-{i}" for i in range(count)])
        *befores, last = self._frames[count]
        pieces = [
            piece
            for before, result in zip(befores, results, strict=True)
            for piece in ((before, False), (self.format.escape(result), True))
        ]
        return [*pieces, (last, False)]

    def _frame_of(self, marks: Sequence[str]) -> list[str]:
        """What the template puts before each result, and after the last one."""
        _, prefix = self._ending
        rendered = self._after_turn(marks)
        if not rendered.startswith(prefix):
            raise TemplateError("the chat template renders a turn differently once an observation follows it")
        rest, befores = rendered[len(prefix) :], []
        for mark in marks:
            before, found, rest = rest.partition(mark)
            if not found:
                raise TemplateError("the chat template drops or changes the content of observations")
            befores.append(before)
        return [*befores, rest]


def _cut(pieces: Sequence[tuple[str, bool]], cut: Callable[[str], list[str]]) -> list[str]:
    """The text of all pieces, with the literal pieces cut by `cut`."""
    parts = [""]
    for piece, literal in pieces:
        first, *more = (cut(piece) or [""]) if literal else [piece]
        parts[-1] += first
        parts += more
    return parts
