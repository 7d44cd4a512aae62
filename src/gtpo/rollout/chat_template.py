"""A tokenizer's chat template: conversations and single turns as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from gtpo.errors import TemplateError

_USER, _TEXT = "USER-TEXT", "MODEL-TEXT"
CALL_ID = "call00001"


class ChatTemplate:
    """Renders messages with the chat template of a tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        tools: schemas of the tools, or None.
        options: passed on to `apply_chat_template`.
    """

    def __init__(self, tokenizer: Any, tools: list[dict[str, Any]] | None, options: Mapping[str, Any]) -> None:
        self.tokenizer, self.tools, self.options = tokenizer, tools, dict(options)

    def render(self, messages: Sequence[Mapping[str, Any]], *, generate: bool = True, tools: Any = ...) -> str:
        """The conversation as text, followed by the generation prompt if `generate`.

        Raises:
            TemplateError: the template does not take the messages.
        """
        try:
            return self._render(messages, generate, self.tools if tools is ... else tools, self._in_parts)
        except Exception as error:  # jinja raises its own tree of errors, and templates raise on purpose
            roles = [m.get("role") for m in messages]
            raise TemplateError(f"the chat template can't render messages with the roles {roles}: {error}") from error

    def ignores_tools(self) -> bool:
        """Whether prompts are the same with and without tools."""
        probe = [{"role": "user", "content": _USER}]
        return self.render(probe) == self.render(probe, tools=None)

    def calling(self, text: str, function: Mapping[str, Any]) -> dict[str, Any]:
        """A message of the assistant with a call, its arguments as the template takes them: an object or a string."""
        call = {"id": CALL_ID, "type": "function", "function": dict(function)}
        message = {"role": "assistant", "content": text, "tool_calls": [call]}
        try:
            self._render([{"role": "user", "content": _USER}, message], False, self.tools, self._in_parts)
        except Exception:  # see render
            call["function"] = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        return message

    def written_turn(self, text: str, function: Mapping[str, Any] | None = None) -> str:
        """What the template writes for a turn after a prompt, including the end of the turn.

        Raises:
            TemplateError: the template does not take such a turn.
        """
        question = {"role": "user", "content": _USER}
        message = {"role": "assistant", "content": text} if function is None else self.calling(text, function)
        prompt, whole = self.render([question]), self.render([question, message], generate=False)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        rest = whole[whole.rindex(_USER) + len(_USER) :] if _USER in whole else whole
        return rest.removeprefix(prompt[prompt.rindex(_USER) + len(_USER) :] if _USER in prompt else "")

    def _render(self, messages: Sequence[Mapping[str, Any]], generate: bool, tools: Any, in_parts: bool) -> str:
        return self.tokenizer.apply_chat_template(
            [_parts(message) if in_parts else dict(message) for message in messages],
            tools=tools,
            tokenize=False,
            add_generation_prompt=generate,
            **self.options,
        )

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template needs a message's text as a list of parts, as some templates for images do."""
        probe = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _TEXT}]
        for in_parts in (False, True):
            try:
                rendered = self._render(probe, False, None, in_parts)
            except Exception:  # see render
                continue
            if _USER in rendered and _TEXT in rendered:
                return in_parts
        return False


def shared_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items at the start of two sequences are the same."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _parts(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}] if isinstance(content, str) else content}
