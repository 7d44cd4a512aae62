"""From chat messages to token ids, without ever rendering a conversation twice.

A rollout's context is: the prompt, then in turn what the model sampled and what comes between the end of a turn and the
place where the model goes on (the observation, framed). `Encoder` is the boundary that the rest of the project knows;
it has two implementations: `gtpo.rollout.native.RendererEncoder` for the families that the library `renderers` has, and
`ChatEncoder` for every other chat template.

`ChatEncoder` takes the frame from the template once, by comparing a small conversation with and without the
observation. So a history is never rendered again, and templates that rewrite history (dropping old thoughts, say) can't
change what was sampled. Cold-start traces are encoded by the same functions, so a trace and a rollout of the same text
have the same ids.

Text that came out of a tool is tokenised without special tokens, and without added ones that look like markup (such as
"<think>"): it can't close a message or open one, nor hold what the model knows as one token for a call or a thought.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from gtpo._text import well_formed
from gtpo.errors import DataError, TemplateError
from gtpo.rollout.chat_template import ChatTemplate, shared_length
from gtpo.rollout.formats import ToolFormat
from gtpo.rollout.tool_spec import typical
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn

Messages = Sequence[Mapping[str, Any]]
Calls = tuple[ToolCall | InvalidCall, ...]

_USER, _TURN, _CALL, _RESULT = "USER-TEXT", "MODEL-TEXT", "CALL-TEXT", "TOOL-TEXT"


class Encoder(ABC):
    """Between chat messages and token ids, for one tokenizer and one tool format.

    Attributes:
        tokenizer: a Hugging Face tokenizer.
        format: the tool-call syntax.
        tools: schemas of the tools as the prompt holds them, or None.
        template_kwargs: options of the chat template.
        end_ids: ids that end a turn.
        end_id: the one that ends a turn without a call, as the template has it.
        choice: which format this is, and why, in one line.
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
        """Ids of the conversation so far, up to where the model goes on."""

    @abstractmethod
    def parse_turn(self, token_ids: Sequence[int], context: Sequence[int] = ()) -> Calls:
        """The calls of a turn, valid and invalid, in order. Drafts within a thought are none.

        Args:
            token_ids: the turn, with or without its end-of-turn token.
            context: the ids before it, which may have opened a thought.
        """

    @abstractmethod
    def observation_ids(
        self, results: Sequence[str], turn_ids: Sequence[int] = (), context: Sequence[int] = ()
    ) -> list[int]:
        """Ids between a turn's end token and where the model goes on.

        Args:
            results: one for each call of the turn, in order.
            turn_ids: the turn, with its end token; by default any turn that makes a call.
            context: the ids before the turn.
        """

    def end_of(self, calls: Calls) -> int:
        """The id that ends a turn with these calls, as the template has it."""
        return self.end_id

    def parse(self, text: str) -> Calls:
        """The calls of a turn that is given as text, after a prompt."""
        return self.parse_turn(self._encode(text))

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
        """Decode one turn, without the end-of-turn token. The last tuple's is kept: it is read next."""
        if not isinstance(token_ids, tuple):
            return self.decode(self._without_end(token_ids))
        if self._decoded[0] is not token_ids:
            self._decoded = token_ids, self.decode(self._without_end(token_ids))
        return self._decoded[1]

    def ended(self, token_ids: Sequence[int]) -> bool:
        """Whether a turn was ended by the model."""
        return bool(token_ids) and token_ids[-1] in self.end_ids

    def trace(self, messages: Messages) -> Trajectory:
        """Encode a whole conversation as the rollout that would have produced it.

        Roles: any prompt, then `assistant` turns with one or more `tool` messages between them, each the bare result
        of a call. Assistant text must be as the model should write it after the prompt, calls included;
        `ToolFormat.render_turn` writes it.

        Raises:
            DataError: no assistant turn, two turns without an observation between them, or an unknown role.
        """
        first = next((i for i, m in enumerate(messages) if m.get("role") == "assistant"), None)
        if first is None or messages[-1].get("role") != "assistant":
            raise DataError("a trace must hold assistant messages, and end with one", field="messages")
        prompt_ids = self.prompt_ids(messages[:first])
        context = list(prompt_ids)
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

    def _observed(self, turn: Turn, results: Sequence[str], context: Sequence[int]) -> Turn:
        before = context[: len(context) - len(turn.token_ids)]
        ids = tuple(self.observation_ids(results, turn.token_ids, before))
        return replace(turn, observation=Observation("\n".join(results), ("ok",) * len(results), ids))

    def decode(self, ids: Sequence[int]) -> str:
        """Ids as text, special tokens and spaces as they are."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _without_end(self, token_ids: Sequence[int]) -> list[int]:
        ids = list(token_ids)
        return ids[:-1] if ids and ids[-1] in self.end_ids else ids

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(well_formed(text), add_special_tokens=False) if text else []

    def _encode_literal(self, text: str) -> list[int]:
        """Encode text in which no markup may come up, by cutting each one that would after its first character."""
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


class ChatEncoder(Encoder):
    """An encoder on the frames of a chat template.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        tool_format: the tool-call syntax.
        end_ids: ids that end a turn, besides the tokenizer's end-of-sequence token and the template's own.
        template_kwargs: passed on to `apply_chat_template` (e.g. `enable_thinking`).

    Raises:
        TemplateError: no chat template; one that ignores the tools the format needs, or that writes calls in another
            syntax; one in which a turn does not end with a special token, or that can't continue after an observation.
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
            self.end_id = self._plain_end if self.tools else self._ending[0]
            self._end_of_call = self._ending[0]
        self.end_ids = frozenset(end_ids) | {tokenizer.eos_token_id, self.end_id, self._end_of_call}

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
        pieces = self._frame_for(results)
        if self.tools:  # as the template does it, in one go but for markup in results
            return [i for piece in _cut(pieces, self._pieces) for i in self._encode(piece)]
        return [i for piece, literal in pieces for i in (self._encode_literal if literal else self._encode)(piece)]

    def parse_turn(self, token_ids: Sequence[int], context: Sequence[int] = ()) -> Calls:
        """See `Encoder.parse_turn`. What was sampled is read as text, as servers do."""
        return self.parse(self.text(token_ids))

    def parse(self, text: str) -> Calls:
        """The calls of a turn. Drafts within a thought are none, also where the prompt opened it."""
        return self.format.parse(f"<think>{text}" if self._opens_thought else text)

    @cached_property
    def _opens_thought(self) -> bool:
        return self._template.render([{"role": "user", "content": _USER}]).rstrip().endswith("<think>")

    def _check_calls(self) -> None:
        """Whether the format reads a call as the template writes it."""
        written = self._template.written_turn("", self._call)
        if not any(isinstance(call, ToolCall) for call in self.format.parse(written)):
            raise TemplateError(
                f"the chat template writes a call as {written!r}, which the format {self.format.name!r} does not read. "
                "Use --tool_format auto, or fenced, which needs no help from the template"
            )

    @property
    def _argument(self) -> Any:
        """Of the call in a history: a text that is found again, if it may be one."""
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
            return [question, {"role": "assistant", "content": _TURN}], _TURN
        text, anchor = ("", _CALL) if self._argument == _CALL else (_TURN, _TURN)
        return [question, self._template.calling(text, self._call)], anchor

    @cached_property
    def _ending(self) -> tuple[int, str]:
        """The token that ends a turn, and what the template writes from the turn's text or call to that token."""
        history, anchor = self._history
        return self._ending_of(history, anchor, self._after_turn([_RESULT]))

    @cached_property
    def _plain_end(self) -> int:
        """The token that ends a turn without a call."""
        history = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _TURN}]
        followed = self._template.render([*history, {"role": "user", "content": _USER}])
        return self._ending_of(history, _TURN, followed[max(followed.rfind(_TURN), 0) :])[0]

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
        """The conversation from its turn's text or call on: what is before may change with the turn's place."""
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
    """The text of all pieces, cut where those that are literal are to be."""
    parts = [""]
    for piece, literal in pieces:
        first, *more = (cut(piece) or [""]) if literal else [piece]
        parts[-1] += first
        parts += more
    return parts


def _note(characters: int) -> str:
    return f"\n[... {characters} characters cut ...]\n"
