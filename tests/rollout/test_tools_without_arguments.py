"""Tools that take no argument, or none that a call must give, in every kind of format."""

from __future__ import annotations

import asyncio

import pytest
from families import BUILDABLE, PROMPT, family_tokenizer, template_tokenizer

from gtpo.errors import ConfigError
from gtpo.rollout import FunctionTool, RolloutConfig, ToolSpec, get_format
from gtpo.rollout.choosing import make_encoder
from gtpo.rollout.native import RendererEncoder
from gtpo.rollout.tool_spec import PYTHON, typical
from gtpo.types import InvalidCall, ToolCall

LOOK = ToolSpec("look", "Look around.", {}, (), ability="look around")
LIST = ToolSpec("list", "List a place.", {"place": {"type": "string"}}, (), ability="list a place")
PICK = ToolSpec("pick", "Pick one.", {"number": {"type": "integer"}}, (), ability="pick one")
CALLED = ToolCall("look()", "look", {})
ENCODED = [
    *("qwen3.jinja", "qwen2_5.jinja", "llama3_1.jinja", "glm4moe.jinja", "gptoss.jinja", "lfm2_v2.jinja"),
    *("qwen3.5", "gemma4", "kimi-k2", "llama-3", "minimax-m2", "deepseek-v3", "glm-4.5", "inkling"),
]


def encoder_of(name, specs):
    if name in BUILDABLE:
        return RendererEncoder(family_tokenizer(name), name, specs)
    return make_encoder(template_tokenizer(name), "auto", specs)


@pytest.mark.parametrize("specs", [(LOOK,), (LOOK, PYTHON), (PYTHON, LOOK)], ids=["alone", "first", "last"])
@pytest.mark.parametrize("name", ENCODED)
def test_a_call_without_arguments_is_written_read_and_answered(name, specs):
    encoder = encoder_of(name, specs)
    written = encoder.format.render_call("", LOOK)
    assert encoder.parse(written) == (CALLED,), written
    turn = [*encoder._encode(written), encoder.end_of((CALLED,))]
    observed = encoder.decode(encoder.observation_ids(["a dark cave"], turn, encoder.prompt_ids(PROMPT)))
    assert observed.count("a dark cave") == 1


@pytest.mark.parametrize(
    ("spec", "body", "found"),
    [
        (LOOK, "", CALLED),
        (LOOK, "around\n", InvalidCall("the ```look block must be empty")),
        (LIST, "", ToolCall("list()", "list", {})),
        (LIST, "cave\n", ToolCall("list(place='cave')", "list", {"place": "cave"})),
        (PICK, "", ToolCall("pick()", "pick", {})),
        (PICK, "3\n", InvalidCall("the ```pick block must be empty")),
    ],
)
def test_a_fenced_block_of_a_tool_that_needs_no_argument_may_be_empty(spec, body, found):
    fenced = get_format("fenced", (spec,))
    assert fenced.parse(f"```{spec.name}\n{body}```") == (found,)
    assert "an empty block" in fenced.usage(spec)
    assert fenced.parse(fenced.render_call("", spec))[0].name == spec.name


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ('{"name": "look"}', CALLED),
        ('{"name": "look", "arguments": {}}', CALLED),
        ('{"name": "look", "arguments": null}', CALLED),
        ('{"name": "look", "arguments": {"at": 1}}', InvalidCall("'look' takes no arguments, not 'at'")),
        ('{"name": "look", "arguments": 1}', InvalidCall('"arguments" must be an object')),
    ],
)
def test_arguments_may_be_left_out_where_there_are_none(call, found):
    assert get_format("tool_call", (LOOK,)).parse(f"<tool_call>{call}</tool_call>") == (found,)


def test_a_tool_that_needs_an_argument_is_still_refused_without(tiny_tokenizer):
    assert isinstance(PYTHON.call(None), InvalidCall)
    with pytest.raises(ConfigError, match="names 'at', which is not in its `parameters`"):
        ToolSpec("look", "Look around.", {}, ("at",), ability="look around")


def test_how_calls_are_written_is_seen_by_a_tool_that_takes_a_text():
    assert typical((LOOK, PICK, LIST)) is LIST
    assert typical((LOOK, PICK)) is PICK
    assert typical((LOOK,)) is LOOK


def test_a_function_without_parameters_is_a_tool():
    def roll():
        """Roll a die."""
        return 4

    tool = FunctionTool(roll)
    assert tool.spec.required == ()
    assert asyncio.run(tool.open(0).run(tool.spec.call({}))).text == "4"


def test_on_the_command_line_a_function_without_parameters_is_a_tool_if_it_says_what_it_returns(tmp_path):
    file = tmp_path / "dice.py"
    file.write_text(
        'def roll() -> int:\n    """Roll a die."""\n    return 4\n\n\n'
        "def factory():\n    from gtpo.rollout import FunctionTool\n    return FunctionTool(roll)\n"
    )
    for name in ("roll", "factory"):
        (tool,) = RolloutConfig(tools=f"{file}:{name}").make_tools()
        assert tool.spec.name == "roll"
