"""The families that the library `renderers` has: their own prompts, calls, thoughts and observations, token by token.

`renderers` (Apache-2.0) has one renderer per model family. It converts messages to ids, finds the calls in sampled ids
with a status for each attempt, and extends what was sampled by the next messages without rendering it again. This
module adds:

- a call's arguments are checked against the tool's schema, and each invalid call says why in words;
- calls of families that write JSON in `<tool_call>` tags are read by `gtpo.rollout.tagged_json`, and those of Llama 3
  by `gtpo.rollout.bare_json`: `renderers` accepts fewer of the ways in which models write them;
- a closing tag within a string of code does not end the call;
- the content of an observation is encoded as plain text (see `gtpo.rollout.encoding`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from openai_harmony import HarmonyError
from renderers.base import (
    MODEL_RENDERER_MAP,
    ParsedToolCall,
    ToolCallParseStatus,
    create_renderer,
    merge_chat_template_kwargs,
)
from renderers.configs import config_from_name

from gtpo.errors import ConfigError, TemplateError
from gtpo.rollout.bare_json import read_bare_calls
from gtpo.rollout.call_syntax import CLOSE_THOUGHT, OPEN_THOUGHT, foreign_call, named_call, without_thoughts
from gtpo.rollout.chat_template import shared_length
from gtpo.rollout.cut_tokenizer import CutTokenizer
from gtpo.rollout.encoding import Calls, Encoder, Messages
from gtpo.rollout.native_calls import FAULTS, whole_arguments
from gtpo.rollout.native_format import NativeFormat
from gtpo.rollout.tagged_json import read_tagged_calls
from gtpo.rollout.tool_spec import ToolSpec, typical
from gtpo.types import InvalidCall, ToolCall

_USER, _THOUGHT, _TURN, _ARGUMENT, _RESULT = "USER-TEXT", "THOUGHT-TEXT", "MODEL-TEXT", "ARGUMENT-TEXT", "TOOL-TEXT"
FAMILIES = tuple(dict.fromkeys(MODEL_RENDERER_MAP.values()))
"""Names of the available renderers."""

_MOST_REPAIRS = 8
_LOOK_BACK = 16
"""Ids of the prompt's end that tell whether it opened a thought."""


class RendererEncoder(Encoder):
    """An encoder that uses a renderer of the library `renderers`.

    Args:
        tokenizer: a Hugging Face tokenizer with the family's special tokens.
        family: the renderer's name, such as `qwen3.5`.
        specs: the tools.
        end_ids: ids that end a turn, besides those of the renderer.
        template_kwargs: options of the family's chat template (e.g. `enable_thinking`).

    Raises:
        ConfigError: there is no such family, or it does not have an option.
        TemplateError: the tokenizer lacks the family's special tokens, or the family can't continue after an
            observation.
    """

    def __init__(
        self,
        tokenizer: Any,
        family: str,
        specs: Sequence[ToolSpec],
        *,
        end_ids: Iterable[int] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.family = family
        self._plain = CutTokenizer(tokenizer)
        self._renderer = _renderer(self._plain, family, template_kwargs)
        super().__init__(tokenizer, NativeFormat(self, tuple(specs)), template_kwargs)
        self.choice = f"native ({family})"
        self._stop_ids = frozenset(self._renderer.get_stop_token_ids())
        self.end_ids = self._stop_ids | frozenset(end_ids)
        self._prompt = self._ids([{"role": "user", "content": _USER}], generate=True)
        self.end_id = self._first_stop(self._turn_ids(_TURN, None, None, followed=True))
        self._end_of_call = self.end_id
        if specs:
            self._end_of_call = self._first_stop(self._call_ids)
            self._frame_after_call([_RESULT])  # raises now rather than in the middle of a run

    def prompt_ids(self, messages: Messages) -> list[int]:
        """See `Encoder.prompt_ids`."""
        return self._ids(messages, generate=True)

    def rendered(self, messages: Messages) -> list[int]:
        """Ids of a conversation as the family's template renders it."""
        return self._ids(messages)

    def end_of(self, calls: Calls) -> int:
        """See `Encoder.end_of`."""
        return self._end_of_call if calls else self.end_id

    def parse_turn(self, token_ids: Sequence[int], context: Sequence[int] = ()) -> Calls:
        """See `Encoder.parse_turn`. Without a context, the turn follows a prompt."""
        if not self.format.specs:
            return ()
        ids = self._without_end(token_ids)
        context = context or self._prompt
        if self._reader is not None:
            opened = self.decode(context[-_LOOK_BACK:]).rstrip().endswith(OPEN_THOUGHT)
            return self._reader(f"{OPEN_THOUGHT if opened else ''}{self.decode(ids)}", self.format.specs)
        ids = self._without_draft(ids, context)
        calls, content, whole = self._parsed(ids, context)
        if not whole:
            calls = self._repaired(ids, context) or calls
        if not calls and self._marks.search(content):
            as_text = self._encode(self.decode(ids))  # tags that were sampled letter by letter
            calls = self._parsed(as_text, context)[0] if as_text != ids else ()
        return calls or foreign_call(content, self.expected, self.format.specs)

    def observation_ids(
        self, results: Sequence[str], turn_ids: Sequence[int] = (), context: Sequence[int] = ()
    ) -> list[int]:
        """See `Encoder.observation_ids`. A turn that the family can't continue from is treated as one that it can."""
        found = self._bridged(results, turn_ids, context) if turn_ids and context else None
        return found if found is not None else self._frame_after_call(results)

    def reply_ids(self, text: str, turn_ids: Sequence[int] = (), context: Sequence[int] = ()) -> list[int]:
        """See `Encoder.reply_ids`. The ids after the turn of a small conversation; the same after every turn."""
        with self._plain.cutting([text], self._pieces) as contents:
            return self._conversation_with_reply(contents[0])[self._reply_start :]

    def check_replies(self) -> None:
        """See `Encoder.check_replies`."""
        if _RESULT not in self.decode(self.reply_ids(_RESULT)):
            raise TemplateError(f"the renderer {self.family} can't continue after a user's reply")

    def _conversation_with_reply(self, reply: Any) -> list[int]:
        turn = {"role": "assistant", "content": _TURN}
        return self._ids([{"role": "user", "content": _USER}, turn, {"role": "user", "content": reply}], generate=True)

    @cached_property
    def _reply_start(self) -> int:
        """Where a reply's frame begins in `_conversation_with_reply`: after the end token of the turn."""
        ids = self._conversation_with_reply(_RESULT)
        said = next((k for k in range(len(ids)) if _TURN in self.decode(ids[: k + 1])), len(ids))
        end = next((k for k in range(said, len(ids)) if ids[k] == self.end_id), None)
        if end is None:
            raise TemplateError(f"the renderer {self.family} does not end a turn before a user's reply")
        return end + 1

    def _without_draft(self, ids: list[int], context: Sequence[int]) -> list[int]:
        """The turn without its thought if that contains a call: some renderers take the call for the thought's end."""
        close, opening = (self.tokenizer.convert_tokens_to_ids(tag) for tag in (CLOSE_THOUGHT, OPEN_THOUGHT))
        if close not in self._added or close not in ids:
            return ids
        end = ids.index(close)
        start = ids.index(opening) + 1 if opening in ids[:end] else 0
        opened = start or self.decode(context[-_LOOK_BACK:]).rstrip().endswith(OPEN_THOUGHT)
        return [*ids[:start], *ids[end:]] if opened and self._tags[0] & set(ids[start:end]) else ids

    @cached_property
    def expected(self) -> str:
        """How a call is written, on one line."""
        written = self.format.render_call("...", typical(self.format.specs))
        return re.sub(r"\s*\n\s*", " ", written).strip()

    def written_turn(self, text: str, argument: Any = None, spec: ToolSpec | None = None) -> str:
        """A turn as the family's template writes it after a prompt, up to its end token."""
        ids = self._turn_ids(text, argument, spec, followed=False)
        stop = next((k for k, i in enumerate(ids) if i in self._stop_ids), len(ids))
        return self.decode(ids[:stop])

    def _turn_ids(self, text: str, argument: Any, spec: ToolSpec | None, *, followed: bool) -> list[int]:
        """Ids from where a turn begins after a prompt, to the end of it or of the message that follows it."""
        turn: dict[str, Any] = {"role": "assistant", "content": text}
        follow: dict[str, Any] = {"role": "user", "content": _USER}
        if spec is not None:
            function = {"name": spec.name, "arguments": spec.arguments(argument)}
            call_id = f"functions.{spec.name}:0"
            turn["tool_calls"] = [{"id": call_id, "type": "function", "function": function}]
            follow = {"role": "tool", "name": spec.name, "tool_call_id": call_id, "content": _RESULT}
        following = [follow] if followed else []
        prompt = self.decode(self._prompt)
        ids = self._ids([{"role": "user", "content": _USER}, turn, *following])
        rendered = self.decode(ids)
        if rendered.startswith(prompt):
            return self._encode(rendered[len(prompt) :])
        if prompt.rstrip().endswith(OPEN_THOUGHT):
            turn["reasoning_content"] = _THOUGHT  # the template leaves out an empty thought, which the prompt opened
            rendered = self.decode(self._ids([{"role": "user", "content": _USER}, turn, *following]))
            if _THOUGHT in rendered:
                return self._encode(rendered.partition(_THOUGHT)[2])
            return [*self._encode(f"{CLOSE_THOUGHT}\n\n"), *ids[shared_length(ids, self._prompt) :]]
        return ids[shared_length(ids, self._prompt) :]

    @cached_property
    def _call_ids(self) -> list[int]:
        """Ids of a turn with a call and of an observation after it."""
        spec = typical(self.format.specs)
        return self._turn_ids("", spec.sample, spec, followed=True)

    def _first_stop(self, ids: Sequence[int]) -> int:
        stops = self._renderer.get_stop_token_ids()
        return next((i for i in ids if i in self._stop_ids), stops[0])

    def _ids(self, messages: Messages, *, generate: bool = False) -> list[int]:
        try:
            return list(
                self._renderer.render_ids(
                    [dict(message) for message in messages], tools=self.tools, add_generation_prompt=generate
                )
            )
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            roles = [message.get("role") for message in messages]
            raise TemplateError(f"the renderer {self.family} can't render the roles {roles}: {error}") from error

    @cached_property
    def _reader(self) -> Any:
        """The reader of gtpo that reads the family's calls, if one does."""
        spec = typical(self.format.specs)
        text = self.written_turn("", spec.sample, spec)
        for reader in (read_tagged_calls, read_bare_calls):
            calls = reader(text, self.format.specs)
            if len(calls) == 1 and isinstance(calls[0], ToolCall):
                return reader
        return None

    def _parsed(self, ids: Sequence[int], context: Sequence[int]) -> tuple[Calls, str, bool]:
        """The calls that `renderers` finds, the text that is neither call nor thought, and whether all are whole.

        A call is whole if it is valid and no closing tag occurs in it more often than it has arguments.
        """
        parsed = self._renderer.parse_response(list(ids), tools=self.tools, prompt_ids=list(context))
        calls = tuple(self._call(attempt) for attempt in parsed.tool_calls)
        whole = all(isinstance(call, ToolCall) for call in calls)
        for attempt in parsed.tool_calls:
            most = max(1, len(attempt.arguments) if isinstance(attempt.arguments, dict) else 1)
            whole = whole and all(attempt.raw.count(tag) <= most for tag in self._closing_texts)
        return calls, without_thoughts(parsed.content or ""), whole

    def _call(self, attempt: ParsedToolCall) -> ToolCall | InvalidCall:
        if attempt.status is ToolCallParseStatus.OK or (attempt.name and isinstance(attempt.arguments, dict)):
            return named_call(attempt.name, whole_arguments(attempt), self.format.specs)
        return InvalidCall(f"the call can't be read: {FAULTS[attempt.status]}; write it as {self.expected}")

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """Matches what only a call contains: its special tokens, and words in <>."""
        written = self.format.render_call("", typical(self.format.specs))
        marks = {self.decode([i]) for i in self._encode(written) if i in self._added}
        marks |= set(re.findall(r"<[^\s<>]+>", written))
        return re.compile("|".join(sorted(map(re.escape, marks), key=len, reverse=True)) or r"(?!)")

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_added_vocab().values())

    @cached_property
    def _tags(self) -> tuple[frozenset[int], frozenset[int]]:
        """Added tokens before the argument of a call and after it."""
        spec = typical(self.format.specs)
        mark = spec.name if spec.argument is None else _ARGUMENT
        ids = self._encode(self.format.render_call(_ARGUMENT, spec))
        place = next((k for k in range(len(ids)) if mark in self.decode(ids[: k + 1])), len(ids))
        opening = frozenset(i for i in ids[:place] if i in self._added)
        return opening, frozenset(i for i in ids[place:] if i in self._added) - opening

    @cached_property
    def _closing_texts(self) -> list[str]:
        return [self.decode([i]) for i in self._tags[1]]

    def _repaired(self, ids: Sequence[int], context: Sequence[int]) -> Calls:
        """The calls if closing tags within a string of code are read as text; none if that makes none whole.

        A closing tag can be within a string only if another one follows before the next call opens.
        """
        opening, closing = self._tags
        tags = [k for k, i in enumerate(ids) if i in closing or i in opening]
        quoted = [k for k, following in pairwise(tags) if {ids[k], ids[following]} <= closing]
        for count in range(1, min(len(quoted), _MOST_REPAIRS) + 1):
            as_text = set(quoted[:count])
            changed: list[int] = []
            for k, i in enumerate(ids):
                changed += self._encode_literal(self.decode([i])) if k in as_text else [i]
            calls, _, whole = self._parsed(changed, context)
            if calls and all(isinstance(call, ToolCall) for call in calls) and (whole or count == len(quoted)):
                return calls
        return ()

    def _frame_after_call(self, results: Sequence[str]) -> list[int]:
        ids = self._call_ids
        turn = ids[: ids.index(self._end_of_call) + 1] if self._end_of_call in ids else [*ids, self._end_of_call]
        found = self._bridged(results, turn, self._prompt)
        return self._rendered_frame(results) if found is None else found

    def _rendered_frame(self, results: Sequence[str]) -> list[int]:
        """The ids after the turn with a call of a small conversation, for families that never extend a conversation."""
        spec = typical(self.format.specs)
        function = {"name": spec.name, "arguments": spec.arguments(spec.sample)}
        call_ids = [f"functions.{spec.name}:{number}" for number in range(len(results))]
        calls = [{"id": call_id, "type": "function", "function": function} for call_id in call_ids]
        with self._plain.cutting(results, self._pieces) as contents:
            tools = [
                {"role": "tool", "name": spec.name, "tool_call_id": call_id, "content": content}
                for call_id, content in zip(call_ids, contents, strict=True)
            ]
            turn = {"role": "assistant", "content": "", "tool_calls": calls}
            ids = self._ids([{"role": "user", "content": _USER}, turn, *tools], generate=True)
        start = shared_length(ids, self._prompt)
        if self._end_of_call not in ids[start:]:
            raise TemplateError(f"the renderer {self.family} can't continue after an observation")
        return ids[ids.index(self._end_of_call, start) + 1 :]

    def _bridged(self, results: Sequence[str], turn_ids: Sequence[int], context: Sequence[int]) -> list[int] | None:
        """What `renderers` puts after a turn, or None if it would change what is before."""
        turn, context = list(turn_ids), list(context)
        if turn[-1] != self._end_of_call and turn[-1] in self.end_ids:
            turn[-1] = self._end_of_call  # another end token of the family: it goes on as after the usual one
        with self._plain.cutting(results, self._pieces) as contents:
            messages = self._messages(contents, turn, context)
            bridged = self._renderer.bridge_to_next_turn(context, turn, messages, tools=self.tools)
        before = [*context, *turn]
        if bridged is None or bridged.token_ids[: len(before)] != before:
            return None
        return list(bridged.token_ids[len(before) :])

    @cached_property
    def _names_calls(self) -> bool:
        """Whether the frame of a result depends on which call it answers."""
        ids = self._call_ids
        turn = ids[: ids.index(self._end_of_call) + 1] if self._end_of_call in ids else [*ids, self._end_of_call]
        spec = typical(self.format.specs)
        frames = []
        for name, call_id in ((spec.name, f"functions.{spec.name}:0"), (f"{spec.name}s", f"functions.{spec.name}s:7")):
            result = {"role": "tool", "name": name, "tool_call_id": call_id, "content": _RESULT}
            found = self._renderer.bridge_to_next_turn(list(self._prompt), turn, [result], tools=self.tools)
            frames.append(found.token_ids if found else None)
        return frames[0] != frames[1]

    def _attempts(self, turn: Sequence[int], context: Sequence[int]) -> list[ParsedToolCall]:
        return self._renderer.parse_response(list(turn), tools=self.tools, prompt_ids=list(context)).tool_calls

    def _messages(self, contents: Sequence[str], turn: Sequence[int], context: Sequence[int]) -> list[Any]:
        """Messages of the role `tool`, with the name and the id of the call that each answers, as far as known."""
        attempts = self._attempts(turn, context) if self._names_calls else []
        known = {spec.name for spec in self.format.specs}
        messages = []
        for number, content in enumerate(contents):
            attempt = attempts[number] if number < len(attempts) else None
            name = attempt.name if attempt and attempt.name in known else self.format.specs[0].name
            call_id = (attempt.id if attempt else None) or f"functions.{name}:{number}"
            messages.append({"role": "tool", "name": name, "tool_call_id": call_id, "content": content})
        return messages


def _renderer(tokenizer: CutTokenizer, family: str, template_kwargs: Mapping[str, Any] | None) -> Any:
    try:
        config = config_from_name(family)
    except ValueError as error:
        raise ConfigError(f"tool_format: unknown renderer {family!r}") from error
    try:
        config = merge_chat_template_kwargs(config, dict(template_kwargs or {}))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"chat_template_kwargs: {error}") from error
    try:
        return create_renderer(tokenizer, config)
    except (AssertionError, ValueError) as error:
        raise TemplateError(f"the tokenizer is not one of the family {family}: {error}") from error
    except HarmonyError as error:
        raise TemplateError(f"the renderer {family} needs to download a vocabulary: {error}") from error
