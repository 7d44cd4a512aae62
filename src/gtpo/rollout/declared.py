"""Calls as a chat template writes them, for templates that no renderer of `renderers` supports.

The syntax of a call is taken from one that the template writes. It is read

- by the reader of a family that reads it back (a template that differs from the family's elsewhere); else
- as a list of calls between two marks, in JSON or in Python: `[TOOL_CALLS][{"name": ...}]`,
  `<|START_ACTION|>[...]<|END_ACTION|>`, `<|tool_call_start|>[python(code="...")]<|tool_call_end|>`; or as a name and
  its arguments in JSON: `[TOOL_CALLS]python[ARGS]{...}`, `to=functions.python ...<|message|>{...}`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gtpo.errors import ConfigError, TemplateError
from gtpo.rollout.call_syntax import foreign_call, json_call, named_call, scan_json, without_thoughts
from gtpo.rollout.chat_template import ChatTemplate
from gtpo.rollout.native import FAMILIES, RendererEncoder
from gtpo.rollout.template_format import TemplateFormat
from gtpo.rollout.tool_spec import PYTHON, ToolSpec, typical
from gtpo.types import InvalidCall, ToolCall

Calls = tuple[ToolCall | InvalidCall, ...]
_ARGUMENT = "ARGUMENT-TEXT"
_NAME = r"(?P<name>[\w.-]+)"
_HARMONY = re.compile(r"to=functions\.(?P<name>[\w.-]+)(?:(?!<\|message\|>|<\|end\|>).)*<\|message\|>", re.DOTALL)
"""A model of gpt-oss writes the channel before or after the name, the template after it."""
_PYTHON_CALL = re.compile(r"\s*,?\s*(?P<name>\w+)\((?P<argument>\w+)\s*=\s*(?P<quote>['\"])(?P<value>.*)", re.DOTALL)


class DeclaredFormat(TemplateFormat):
    """The calls of a chat template: the `ToolFormat` of such a template's `ChatEncoder`.

    Args:
        template: the template, with the tools.
        specs: the tools.
        label: the name of the syntax.
        reader: returns the calls of a turn's text, valid and invalid.
    """

    def __init__(
        self, template: ChatTemplate, specs: Sequence[ToolSpec], label: str, reader: Callable[[str], Calls]
    ) -> None:
        self.specs, self.name = tuple(specs), f"declared ({label})"
        self._template, self._reader = template, reader

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The schemas, for the chat template."""
        return self._template.tools

    def parse(self, text: str) -> Calls:
        """See `ToolFormat.parse`."""
        return self._reader(text)

    def render_call(self, argument: str, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_call`."""
        return self.render_turn("", argument, spec)

    def render_turn(self, text: str, argument: str | None = None, spec: ToolSpec = PYTHON) -> str:
        """See `ToolFormat.render_turn`."""
        call = None if argument is None else {"name": spec.name, "arguments": spec.arguments(argument)}
        return without_ends(self._template.written_turn(text, call), self._template.tokenizer)


def declared_formats(
    tokenizer: Any, specs: Sequence[ToolSpec], template_kwargs: Mapping[str, Any]
) -> Iterator[tuple[DeclaredFormat, str]]:
    """The formats in which the tokenizer's chat template may write calls, each with the reason; most have one or none.

    Each of them reads a call that the template wrote.
    """
    spec = typical(specs)
    template = ChatTemplate(tokenizer, [spec.schema for spec in specs], template_kwargs)
    try:
        if template.ignores_tools():
            return
        argument = _ARGUMENT if isinstance(spec.sample, str) else spec.sample
        call = {"name": spec.name, "arguments": spec.arguments(argument)}
        written = without_ends(template.written_turn("", call), tokenizer)
    except TemplateError:
        return
    wanted = (spec.call(spec.arguments(argument)),)
    for family in FAMILIES:
        if family == "gpt-oss":  # its calls are read below, without the vocabulary that its renderer downloads
            continue
        try:
            encoder = RendererEncoder(tokenizer, family, specs)
        except (ConfigError, TemplateError):
            continue
        if encoder.parse(written) == wanted:
            yield DeclaredFormat(template, specs, family, encoder.parse), f"the chat template writes calls as {family}"
            break
    for reader in (_marked_json(written, specs), _marked_python(written, specs)):
        if reader is not None and reader(written) == wanted:
            yield DeclaredFormat(template, specs, reader.opening, reader), "as the chat template writes a call"


def without_ends(turn: str, tokenizer: Any) -> str:
    """A turn without trailing white space, and without trailing special tokens that end a turn rather than a call."""
    ends = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    ends = {token for token in ends if not re.search(r"tool(?!_response)|action|/|END_", token, re.IGNORECASE)}
    ends |= {tokenizer.eos_token}
    changed = True
    while changed:
        turn = turn.rstrip()
        changed = False
        for token in ends:
            if token and turn.endswith(token):
                turn, changed = turn[: -len(token)], True
    return turn


class _Marked:
    """Reads calls between marks.

    Args:
        opening: the mark before a call, with `NAME` where the tool's name is, if it is there.
        closing: the mark after it, or "".
        specs: the tools.
        expected: how a call is written, for the model.
        payload: returns the calls that begin at a place of a text, by the name in the mark, and where they end.
    """

    def __init__(
        self,
        opening: str,
        closing: str,
        specs: Sequence[ToolSpec],
        expected: str,
        payload: Callable[[str, int, str | None], tuple[list[ToolCall | InvalidCall], int]],
    ) -> None:
        self.opening, self.closing, self.specs, self.expected = opening, closing, specs, expected
        self._payload = payload
        pattern = re.escape(opening).replace("NAME", _NAME).replace(r"\ ", r"\s*").replace("\\\n", r"\s*")
        self._opening = _HARMONY if "to=functions." in opening else re.compile(pattern)

    def __call__(self, text: str) -> Calls:
        text = without_thoughts(text)
        calls: list[ToolCall | InvalidCall] = []
        at = 0
        while opening := self._opening.search(text, at):
            name = opening.groupdict().get("name")
            try:
                found, at = self._payload(text, opening.end(), name)
            except ValueError as error:
                calls.append(InvalidCall(f"the call can't be read ({error}); write it as {self.expected}"))
                at = text.find(self.closing, opening.end()) if self.closing else len(text)
                at = len(text) if at < 0 else at + len(self.closing)
                continue
            closed = re.compile(rf"\s*{re.escape(self.closing)}").match(text, at)
            if closed is None:
                found = [InvalidCall(f"the call was not closed with {self.closing}")]
            calls += found
            at = closed.end() if closed else at
        return tuple(calls) or foreign_call(text, self.expected, self.specs)


def _marked_json(written: str, specs: Sequence[ToolSpec]) -> _Marked | None:
    """A reader of calls in JSON that are written like `written`."""
    spec = typical(specs)
    for start in (match.start() for match in re.finditer(r"[\[{]", written)):
        try:
            value, end = scan_json(written, start)
        except ValueError:
            continue
        named = value == {} if spec.argument is None else isinstance(value, dict) and spec.argument in value
        given = named or spec.name in str(value) if spec.argument is None else str(spec.sample) in str(value)
        if _ARGUMENT not in str(value) and not given:
            continue
        opening, closing = written[:start].strip(), written[end:].strip()
        if not opening or (named and spec.name not in opening):
            return None
        opening = opening.replace(spec.name, "NAME") if named else opening
        return _Marked(opening, closing, specs, _example(written), _json_payload(specs))
    return None


def _example(written: str) -> str:
    return re.sub(r"\s*\n\s*", " ", written.replace(_ARGUMENT, "...")).strip()


def _json_payload(specs: Sequence[ToolSpec]) -> Any:
    def read(text: str, start: int, name: str | None) -> tuple[list[ToolCall | InvalidCall], int]:
        value, end = scan_json(text, start)
        if name is not None:
            return [named_call(name.removeprefix("functions."), value, specs)], end
        return [json_call(call, specs) for call in (value if isinstance(value, list) else [value])], end

    return read


def _marked_python(written: str, specs: Sequence[ToolSpec]) -> _Marked | None:
    """A reader of calls in Python, in a list, that are written like `written`."""
    start = written.find(f"[{typical(specs).name}(")
    end = written.rfind(")]")
    if start <= 0 or end < start:
        return None
    if strange := [spec.name for spec in specs if not spec.name.isidentifier()]:
        raise ConfigError(
            f"tool {strange[0]!r}: this model writes calls as Python, where that is not the name of a function; rename "
            "it, or use --tool_format tool_call"
        )
    opening, closing = written[:start].strip(), written[end + 2 :].strip()

    def read(text: str, start: int, name: str | None) -> tuple[list[ToolCall | InvalidCall], int]:
        end = text.find(closing, start) if closing else len(text)
        end = len(text) if end < 0 else end
        return list(_python_calls(text[start:end].strip(), specs)), end

    return _Marked(opening, closing, specs, _example(written), read)


def _python_calls(source: str, specs: Sequence[ToolSpec]) -> Calls:
    """The calls of a list such as `[python(code="1")]`.

    Raises:
        ValueError: it is none.
    """
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        return _raw_string_call(source, specs, error)
    calls: list[ToolCall | InvalidCall] = []
    for node in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise ValueError("it is no list of calls with named arguments")
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        calls.append(named_call(node.func.id, arguments, specs))
    return tuple(calls)


def _raw_string_call(source: str, specs: Sequence[ToolSpec], error: Exception) -> Calls:
    """One call whose one argument is a string with line breaks and quotes as they are."""
    found = _PYTHON_CALL.fullmatch(source.removeprefix("[").removesuffix("]"))
    value = found["value"].rstrip().removesuffix(")").rstrip() if found else ""
    if found is None or not value.endswith(found["quote"]):
        raise ValueError(f"it is no list of calls: {error}") from error
    return (named_call(found["name"], {found["argument"]: value[:-1]}, specs),)
