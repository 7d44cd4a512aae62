"""Calls as a chat template writes them, where no renderer is for the family: Mistral, Cohere, LFM2, gpt-oss."""

from __future__ import annotations

import pytest
from families import PROMPT, template_tokenizer, tokenizer_with

from gtpo.errors import ConfigError
from gtpo.rollout.choosing import make_encoder
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.types import InvalidCall, ToolCall

_TURNS = """
{%- for m in messages -%}
{%- if m.role == "user" -%}
{%- if tools -%}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif -%}[INST]{{ m.content }}[/INST]
{%- elif m.role == "assistant" -%}
{%- if m.tool_calls -%}CALLS{%- else -%}{{ m.content }}{%- endif -%}</s>
{%- elif m.role == "tool" -%}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]
{%- endif -%}
{%- endfor -%}"""
_LIST = """[TOOL_CALLS][{% for c in m.tool_calls -%}
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}
{%- if not loop.last %}, {% endif %}{%- endfor %}]"""
_NAMED = """{% for c in m.tool_calls -%}
[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{%- endfor %}"""
_ACTION = """<|START_ACTION|>[{% for c in m.tool_calls %}
    {"tool_call_id": "0", "tool_name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}
{%- if not loop.last %},{% endif %}{%- endfor %}
]<|END_ACTION|>"""
TEMPLATES = {"Mistral": _LIST, "Mistral, from version 11 on": _NAMED, "Cohere": _ACTION}
TOKENS = [
    *("</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[ARGS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<|START_ACTION|>", "<|END_ACTION|>"),
]


@pytest.fixture(params=[*TEMPLATES, "LFM2", "gpt-oss"])
def encoder(request):
    if request.param == "LFM2":
        return make_encoder(template_tokenizer("lfm2_v2.jinja"), "auto")
    if request.param == "gpt-oss":
        return make_encoder(template_tokenizer("gptoss.jinja"), "auto")
    template = _TURNS.replace("CALLS", TEMPLATES[request.param])
    return make_encoder(tokenizer_with(TOKENS, end="</s>", template=template), "auto")


def test_calls_are_written_and_read_as_the_template_has_them(encoder):
    write = encoder.format
    assert encoder.choice.startswith("declared (")
    for code in ("1 + 1", "if True:\n    print(']')", 'print("</s>[TOOL_CALLS]")', "x = {'a': [1]}  # ')'"):
        assert encoder.parse(write.render_call(code)) == (ToolCall(code),)
    assert encoder.parse("It is 2.") == ()


def test_what_is_no_call_of_it_is_told_how_one_is_written(encoder):
    written = encoder.format.render_call("1")
    for text in (written.replace("python", "nope"), "<tool_call>{}</tool_call>"):
        (call,) = encoder.parse(text)
        assert isinstance(call, InvalidCall)
    (call,) = encoder.parse("<function=python>1</function>")
    assert "write it as" in call.reason
    assert "..." in call.reason


def test_a_result_stands_where_the_template_puts_it(encoder):
    written = encoder.format.render_call("1")
    trace = encoder.trace(
        [
            PROMPT[1],
            {"role": "assistant", "content": written},
            {"role": "tool", "content": "42"},
            {"role": "assistant", "content": "It is 42."},
        ]
    )
    own = [i for i, kept in zip(trace.completion_ids, trace.mask, strict=True) if kept]
    assert "42" in encoder.decode(trace.completion_ids).replace("It is 42.", "")
    assert encoder.decode(own).startswith(written)
    assert trace.turns[0].token_ids[-1] in encoder.end_ids


def test_a_tool_whose_name_is_no_function_of_python_is_refused_where_calls_are_python():
    text = {"type": "string"}
    named = [ToolSpec(name, "x", {"text": text}, ("text",), ability="x") for name in ("look_up", "look-up")]
    with pytest.raises(ConfigError, match=r"'look-up': this model writes calls as Python.*--tool_format tool_call"):
        make_encoder(template_tokenizer("lfm2_v2.jinja"), "native", named)
    assert make_encoder(template_tokenizer("lfm2_v2.jinja"), "native", named[:1]).choice.startswith("declared (")
