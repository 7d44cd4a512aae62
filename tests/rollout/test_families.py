"""Every chat template that TRL ships, and every family of `renderers` that can be built without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import (
    BUILDABLE,
    CODE,
    KNOWN,
    MARKS,
    NAMES,
    PROMPT,
    encoders,
    family_tokenizer,
    fenced_frame,
    table,
    template_tokenizer,
    walk,
)

from gtpo.errors import ConfigError, TemplateError
from gtpo.rollout.choosing import make_encoder
from gtpo.rollout.native import RendererEncoder
from gtpo.rollout.tool_spec import PYTHON, ToolSpec
from gtpo.types import InvalidCall, ToolCall

ENCODERS = encoders()
WITHOUT_TOOLS = {
    *("cohere.jinja", "cohere2.jinja", "cohere2_training.jinja", "cohere_training.jinja", "deepseek_r1_distill.jinja"),
    *("deepseek_r1_distill_training.jinja", "deepseekv3.jinja", "deepseekv3_training.jinja", "gemma.jinja"),
    *("gemma3.jinja", "gemma3_training.jinja", "gemma_training.jinja", "idefics3.jinja", "idefics3_training.jinja"),
    *("lfm2.jinja", "lfm2_training.jinja", "llama3.jinja", "llama3_training.jinja", "llava_next.jinja"),
    *("llava_next_training.jinja", "muse_glimmer.jinja", "muse_glimmer_training.jinja", "phi3.jinja", "phi3_5.jinja"),
    *("phi3_5_training.jinja", "phi3_training.jinja", "qwen2_5_vl.jinja", "qwen2_5_vl_training.jinja"),
    *("smolvlm.jinja", "smolvlm_training.jinja"),
}
"""Templates that render no tools or no calls, or calls in a syntax that is not known here (Muse Glimmer)."""


@pytest.mark.parametrize("name", ENCODERS)
def test_a_rollout_has_the_ids_of_the_template(name):
    encoder = ENCODERS[name]()
    if name in WITHOUT_TOOLS:
        assert encoder.format.name == "fenced", encoder.choice
        return
    found = walk(encoder)
    if "one call per turn" in KNOWN.get(name, ""):
        assert [calls for calls in found.codes if len(calls) == 1 or not calls] == found.codes
    else:
        assert found.codes == found.wanted
    assert bool(found.notes) == (name in KNOWN), found.notes


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - WITHOUT_TOOLS))
def test_a_trace_has_the_ids_and_the_mask_of_the_rollout(name):
    encoder = ENCODERS[name]()
    found = walk(encoder)
    messages = [*PROMPT]
    for text, results in zip(found.texts, found.results, strict=True):
        messages += [{"role": "assistant", "content": text}, *({"role": "tool", "content": r} for r in results)]
    trace = encoder.trace(messages)
    assert [*trace.prompt_ids, *trace.completion_ids] == found.ids
    own = [i for i, kept in zip(trace.completion_ids, trace.mask, strict=True) if kept]
    assert own == [i for ids in found.turn_ids for i in ids]
    assert all(ids[-1] in encoder.end_ids for ids in found.turn_ids)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_between_two_turns_with_fenced_calls_is_the_templates(name):
    frame, rendered = fenced_frame(make_encoder(template_tokenizer(name), "fenced", (PYTHON,)))
    assert rendered.endswith(frame)
    assert frame.count("```output\n2\n```") == 1


@pytest.mark.parametrize("family", BUILDABLE)
def test_calls_of_a_family(family):
    encoder = RendererEncoder(family_tokenizer(family), family, (PYTHON,))
    write = encoder.format
    for code in (
        CODE,
        "print('</think>')",
        "x = '<tool_call>'",
        "print('</parameter>')",
        "'</arg_value>'",
        'a = "\\n"',
    ):
        assert encoder.parse(write.render_turn("Let me see.", code)) == (ToolCall(code),), code
    assert encoder.parse(write.render_turn("It is 2.")) == ()
    thoughtless = write.render_turn("")
    for text in (write.render_call("1").replace("python", "nope"), '[TOOL_CALLS][{"name": "python", "arguments": {}}]'):
        (call,) = encoder.parse(thoughtless + text)
        assert isinstance(call, InvalidCall)
    assert "\n" not in encoder.expected


@pytest.mark.parametrize("family", BUILDABLE)
def test_a_result_holds_no_token_of_the_family(family):
    encoder = RendererEncoder(family_tokenizer(family), family, (PYTHON,))
    added = set(encoder.tokenizer.get_added_vocab().values())
    plain = encoder.observation_ids(["42"])
    for token in [*encoder.tokenizer.get_added_vocab(), "".join(encoder.tokenizer.get_added_vocab())]:
        attacked = encoder.observation_ids([token])
        assert [i for i in attacked if i in added] == [i for i in plain if i in added], token
        assert encoder.decode(attacked) == encoder.decode(plain).replace("42", token), token


def test_drafts_in_thoughts_are_no_calls_whoever_opened_the_thought():
    for family, opening in (("qwen3", "<think>\n"), ("qwen3.5", ""), ("nemotron-3", ""), ("glm-5", "")):
        encoder = RendererEncoder(family_tokenizer(family), family, (PYTHON,))
        draft = encoder.format.render_call("1")
        assert encoder.parse(f"{opening}{draft}</think>It is 2.") == ()
        assert encoder.parse(f"{opening}{draft}</think>{encoder.format.render_call('2')}") == (ToolCall("2"),)


def test_another_end_token_of_the_family_ends_a_turn_and_the_rollout_goes_on():
    for family, other in (("glm-5", "<|user|>"), ("llama-3", "<|eom_id|>"), ("gemma4", "<turn|>")):
        encoder = RendererEncoder(family_tokenizer(family), family, (PYTHON,))
        end = encoder.tokenizer.convert_tokens_to_ids(other)
        turn = [*encoder._encode(encoder.format.render_turn("", "1")), end]
        assert encoder.ended(turn)
        assert encoder.parse_turn(turn, encoder.prompt_ids(PROMPT)) == (ToolCall("1"),)
        assert encoder.observation_ids(["2"], turn, encoder.prompt_ids(PROMPT)) == encoder.observation_ids(["2"])


def test_arguments_have_the_types_of_the_tools_schema():
    wait = ToolSpec("wait", "", {"hours": {"type": "integer"}}, ("hours",), ability="wait")
    for family in ("qwen3.5", "glm-5", "minimax-m2", "qwen3", "llama-3"):
        encoder = RendererEncoder(family_tokenizer(family), family, (PYTHON, wait))
        turn = encoder.format.render_turn("", 3, wait)
        assert encoder.parse(turn) == (ToolCall("wait(hours=3)", "wait", {"hours": 3}),)
        (call,) = encoder.parse(turn.replace("3", "soon" if family in ("qwen3.5", "glm-5", "minimax-m2") else '"3"'))
        assert "must be an integer" in call.reason


def test_a_call_in_tags_that_were_sampled_letter_by_letter_is_one():
    encoder = RendererEncoder(family_tokenizer("qwen3.5"), "qwen3.5", (PYTHON,))
    turn = encoder.format.render_turn("", "1")
    spelled = [i for character in turn for i in encoder._encode(character)]
    prompt = encoder.prompt_ids(PROMPT)
    assert encoder.parse_turn([*encoder._encode("</think>"), *spelled], prompt) == (ToolCall("1"),)


def test_what_was_chosen_is_said_with_the_reason():
    said = {
        "qwen3_5_think.jinja": "native (qwen3.5): the chat template renders as this family's does",
        "qwen2_5.jinja": "tool_call: the chat template writes calls so",
        "gemma4.jinja": "declared (gemma4): the chat template writes calls as gemma4",
        "phi3.jinja": "fenced: no native format is known for this chat template",
    }
    for name, choice in said.items():
        assert make_encoder(template_tokenizer(name), "auto").choice.startswith(choice)
    assert make_encoder(family_tokenizer("kimi-k2"), "kimi-k2").choice == "native (kimi-k2): as asked for"


def test_a_family_can_be_known_by_the_models_name():
    import copy

    tokenizer = copy.copy(family_tokenizer("kimi-k2"))
    tokenizer.name_or_path = "moonshotai/Kimi-K2-Instruct"
    assert (
        make_encoder(tokenizer, "auto").choice == "native (kimi-k2): by the model's name, moonshotai/Kimi-K2-Instruct"
    )


def test_what_can_not_be_used_is_refused_with_the_remedy(tiny_tokenizer):
    with pytest.raises(TemplateError, match="--tool_format fenced"):
        make_encoder(template_tokenizer("phi3.jinja"), "native")
    with pytest.raises(TemplateError, match=r"writes a call as .*tool_call_start.*--tool_format auto"):
        make_encoder(template_tokenizer("lfm2_v2.jinja"), "tool_call")
    with pytest.raises(TemplateError, match=r"not one of the family qwen3\.5"):
        make_encoder(tiny_tokenizer, "qwen3.5")
    with pytest.raises(ConfigError, match=r"unknown tool format 'xml'; known: auto, native, fenced, tool_call, qwen3"):
        make_encoder(tiny_tokenizer, "xml")
    with pytest.raises(ConfigError, match=r"chat_template_kwargs.*enable_thinking"):
        make_encoder(family_tokenizer("kimi-k2"), "kimi-k2", template_kwargs={"enable_thinking": False})


def test_options_of_the_template_reach_the_renderer():
    tokenizer = family_tokenizer("qwen3.5")
    plain, quick = (
        make_encoder(tokenizer, "qwen3.5", template_kwargs=kwargs) for kwargs in (None, {"enable_thinking": False})
    )
    assert plain.decode(plain.prompt_ids(PROMPT)).endswith("<think>\n")
    assert quick.decode(quick.prompt_ids(PROMPT)).endswith("</think>\n\n")
    assert quick.decode(quick.observation_ids(["2"])).endswith("</think>\n\n")


def test_end_ids_come_from_the_generation_config(tmp_path):
    tokenizer = template_tokenizer("phi3.jinja")
    tokenizer.save_pretrained(tmp_path)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|user|>")]
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}')
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert set(ends) <= make_encoder(loaded, "auto").end_ids


def test_the_table_of_the_documentation_is_what_comes_out():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert page.partition(MARKS[0])[2].partition(MARKS[1])[0].strip() == table()
