"""Chooses the tool format of a model: the one that it was made for, if that is known.

`auto` takes the first of these that applies:

1. a family of the library `renderers` (`native`), found by the model's name or because the tokenizer's chat template
   renders conversations with tools exactly as the family's renderer does;
2. a known syntax in which the chat template writes calls: JSON in `<tool_call>` tags (`tool_call`), the
   syntax of a family, or a list of calls between two marks (`declared`);
3. `fenced`, which needs no help from the template.

`native` accepts only the first two. A renderer's name, such as `qwen3.5`, selects that family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from renderers.base import MODEL_RENDERER_MAP
from transformers import GenerationConfig

from gtpo.errors import ConfigError, TemplateError
from gtpo.rollout.chat_encoder import ChatEncoder
from gtpo.rollout.chat_template import ChatTemplate
from gtpo.rollout.declared import declared_formats
from gtpo.rollout.encoding import Encoder, Messages
from gtpo.rollout.formats import FORMATS, check_tool_format, get_format
from gtpo.rollout.native import FAMILIES, RendererEncoder
from gtpo.rollout.tool_spec import PYTHON, ToolSpec, typical
from gtpo.types import InvalidCall

_DATED = {"llama-3": {"date_string": "26 Jul 2024"}}
"""Options of templates that would write today's date: the date that the renderer writes."""

_DOWNLOADED = {"gpt-oss": {"<|channel|>", "<|call|>", "<|return|>"}}
"""Renderers that download a vocabulary, each tried only if the tokenizer has these special tokens."""


def make_encoder(
    tokenizer: Any,
    tool_format: str,
    specs: Sequence[ToolSpec] = (PYTHON,),
    *,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Encoder:
    """Make the encoder of a tool format; `Encoder.choice` says which format was chosen and why.

    Args:
        tokenizer: a tokenizer with a chat template, or of a family that needs none.
        tool_format: `auto`, `native`, a name in `FORMATS`, or the name of a renderer.
        specs: the tools.
        template_kwargs: options of the chat template.

    Raises:
        ConfigError: the format is unknown, the family lacks an option, or a tool does not fit the format.
        TemplateError: the tokenizer can't be used with the format.
    """
    check_tool_format(tool_format)
    ends = declared_end_ids(tokenizer)
    if tool_format in FORMATS:
        made: Encoder = ChatEncoder(
            tokenizer, get_format(tool_format, specs), end_ids=ends, template_kwargs=template_kwargs
        )
        return _chosen(made, tool_format, "as asked for")
    if tool_format in FAMILIES:
        made = RendererEncoder(tokenizer, tool_format, specs, end_ids=ends, template_kwargs=template_kwargs)
        return _chosen(made, f"native ({tool_format})", "as asked for")
    refused: list[str] = []
    for attempt in (_by_renderer, _by_template):
        for name, why, build in attempt(tokenizer, specs, ends, template_kwargs or {}):
            try:
                return _chosen(build(), name, why)
            except TemplateError as error:
                refused.append(f"{name}: {error}")
    because = "; ".join(refused) or "the syntax of its calls is unknown"
    if tool_format == "native":
        raise TemplateError(
            f"no native tool format is known for {_name_of(tokenizer)} ({because}). Use --tool_format fenced, or the "
            f"name of a renderer: {', '.join(FAMILIES)}"
        )
    made = ChatEncoder(tokenizer, get_format("fenced", specs), end_ids=ends, template_kwargs=template_kwargs)
    return _chosen(made, "fenced", "no native format is known for this chat template")


def declared_end_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that end a generation according to the model's `generation_config.json`; none without such a file."""
    name = _name_of(tokenizer)
    try:
        ends = GenerationConfig.from_pretrained(name).eos_token_id if name else None
    except (OSError, ValueError):  # no such file, no such model, or the Hub is away
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def _name_of(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or "")


def _chosen(encoder: Encoder, name: str, why: str) -> Encoder:
    encoder.choice = f"{name}: {why}"
    return encoder


_Attempt = tuple[str, str, Callable[[], Encoder]]


def _by_renderer(
    tokenizer: Any, specs: Sequence[ToolSpec], ends: Iterable[int], template_kwargs: Mapping[str, Any]
) -> Iterator[_Attempt]:
    def build(family: str) -> Callable[[], Encoder]:
        return lambda: RendererEncoder(tokenizer, family, specs, end_ids=ends, template_kwargs=template_kwargs)

    name = _name_of(tokenizer)
    if family := MODEL_RENDERER_MAP.get(name):
        yield f"native ({family})", f"by the model's name, {name}", build(family)
    if not getattr(tokenizer, "chat_template", None):
        return
    for family in FAMILIES:
        if family in _DOWNLOADED and not _DOWNLOADED[family] <= set(tokenizer.get_added_vocab()):
            continue
        try:
            yield from _alike(tokenizer, family, specs, ends, template_kwargs)
        except TemplateError:  # a tokenizer of another family
            continue


def _alike(
    tokenizer: Any, family: str, specs: Sequence[ToolSpec], ends: Iterable[int], template_kwargs: Mapping[str, Any]
) -> Iterator[_Attempt]:
    """The family if the chat template renders as its renderer does, with or without thoughts by default."""
    for defaults in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        kwargs = {**defaults, **template_kwargs}
        try:
            encoder = RendererEncoder(tokenizer, family, specs, end_ids=ends, template_kwargs=kwargs)
        except ConfigError:  # an option that the family does not have
            continue
        if renders_alike(encoder, {**_DATED.get(family, {}), **template_kwargs}):
            encoder.template_kwargs = dict(template_kwargs)
            yield f"native ({family})", "the chat template renders as this family's does", _given(encoder)
            return


def _given(encoder: Encoder) -> Callable[[], Encoder]:
    return lambda: encoder


def _by_template(
    tokenizer: Any, specs: Sequence[ToolSpec], ends: Iterable[int], template_kwargs: Mapping[str, Any]
) -> Iterator[_Attempt]:
    if not specs or not getattr(tokenizer, "chat_template", None):
        return

    def build(tool_format: Any) -> Callable[[], Encoder]:
        return lambda: ChatEncoder(tokenizer, tool_format, end_ids=ends, template_kwargs=template_kwargs)

    yield "tool_call", "the chat template writes calls so", build(get_format("tool_call", specs))
    for tool_format, why in declared_formats(tokenizer, specs, template_kwargs):
        yield tool_format.name, why, build(tool_format)


def renders_alike(encoder: RendererEncoder, template_kwargs: Mapping[str, Any]) -> bool:
    """Whether the tokenizer's own chat template renders the same as a renderer.

    Compares prompts with tools, a turn with a call and one without, and what follows a turn with a call. It does not
    compare how turns change once others follow them, because no turn is ever rendered again.
    """
    spec = typical(encoder.format.specs or (PYTHON,))
    template = ChatTemplate(encoder.tokenizer, encoder.tools, template_kwargs)
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    answer = {"role": "assistant", "content": "2"}
    try:
        if encoder.prompt_ids(prompt) != _encoded(encoder, template.render(prompt)):
            return False
        for turn in (answer, {**answer, "reasoning_content": "Hm."}):
            if not _same_turn(encoder, template, [*prompt, turn]):
                return False
        if not encoder.tools:
            return True
        call = template.calling("", {"name": spec.name, "arguments": spec.arguments(spec.sample)})
        call["tool_calls"][0]["id"] = call_id = f"functions.{spec.name}:0"
        result = {"role": "tool", "name": spec.name, "tool_call_id": call_id, "content": "2"}
        if not _same_turn(encoder, template, [*prompt, call]):
            return False
        observed = template.render([*prompt, call, result])
    except TemplateError:
        return False
    frame = encoder.decode([encoder.end_of((InvalidCall(""),)), *encoder.observation_ids(["2"])])
    return observed.endswith(frame)


def _same_turn(encoder: RendererEncoder, template: ChatTemplate, messages: Messages) -> bool:
    """Whether both write the last message alike, apart from a final end token that only one of them writes."""
    own, other = encoder.rendered(messages), _encoded(encoder, template.render(messages, generate=False))
    return own in (other, other[:-1]) if other and other[-1] in encoder.end_ids else own == other


def _encoded(encoder: Encoder, text: str) -> list[int]:
    return encoder.tokenizer.encode(text, add_special_tokens=False)
