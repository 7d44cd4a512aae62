"""Tokenizers with the special tokens of model families, and one conversation that is put through all of them.

The tokenizer is a real byte-level BPE, trained on the licence, which stays as it is, with the split of Llama 3 and
Qwen; a family's special tokens are added to it. Run as a script it writes the table of docs/models.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from gtpo.errors import GtpoError, TemplateError
from gtpo.rollout.chat_template import ChatTemplate, shared_length
from gtpo.rollout.choosing import make_encoder
from gtpo.rollout.encoding import Encoder
from gtpo.rollout.native import FAMILIES, RendererEncoder
from gtpo.rollout.tool_spec import PYTHON
from gtpo.types import InvalidCall, ToolCall

TEMPLATES = files("trl").joinpath("chat_templates")
NAMES = sorted(path.name for path in TEMPLATES.iterdir() if path.name.endswith(".jinja"))
BUILDABLE = tuple(name for name in FAMILIES if name != "gpt-oss")  # its renderer downloads a vocabulary
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_MARK = re.compile(r"</?\|?[A-Za-z_:]+\|?>|<[|｜][^|｜<>\s]+[|｜]>|<\|\"\|>|\[gMASK\]|\[/?[A-Z_]{3,}\]")
_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<turn|>", "<|return|>", "<end_of_turn>", "<｜end▁of▁sentence｜>"),
    *("<|END_OF_TURN_TOKEN|>", "<|eot|>", "</s>", "<end_of_utterance>", "<|user|>"),
)
_STARTS = ("<|begin_of_text|>", "<bos>", "<｜begin▁of▁sentence｜>", "<|startoftext|>", "<s>", "[gMASK]")
_MORE = {
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
    "gemma": ("<bos>", "<eos>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<think>", "</think>"),
    "phi": ("<s>", "<|endoftext|>"),
    "qwen": ("<|endoftext|>", "<think>", "</think>"),
    "nemotron": ("<|endoftext|>", "<think>", "</think>"),
    "glm": ("<|endoftext|>",),
    "llava": ("<s>", "</s>"),
}


_NO_THOUGHT = ("</think>", "</think:opensource>")
"""How a prompt ends that leaves no place for a thought."""


@cache
def _bpe() -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    licence = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")
    text = re.sub(r"([^\w\s])\s*\n", r"\1 ", licence)  # no token for ".\n": renderers split there
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer.to_str()


def tokenizer_with(specials: list[str], *, end: str, template: str | None = None) -> Any:
    """The tokenizer with these special tokens."""
    from tokenizers import Tokenizer
    from transformers import AddedToken, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_bpe()), eos_token=end)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    tokenizer.bos_token = next((start for start in _STARTS if start in specials), end)
    tokenizer.chat_template = template
    return tokenizer


@cache
def template_tokenizer(name: str) -> Any:
    """A tokenizer with one of the chat templates that TRL ships, and with what that takes for a token."""
    text = TEMPLATES.joinpath(name).read_text(encoding="utf-8")
    more = [token for part, tokens in _MORE.items() if part in name for token in tokens]
    if "gemma4" in name or "diffusion_gemma" in name:
        more += [str(token) for token in family_tokenizer("gemma4").added_tokens_decoder.values()]
    specials = list(dict.fromkeys([*more, *sorted(set(_MARK.findall(text)))]))
    end = "<|endoftext|>" if "phi" in name else next((end for end in _ENDS if end in specials), "<|endoftext|>")
    return tokenizer_with(specials, end=end, template=text)


@cache
def family_tokenizer(family: str) -> Any:
    """A tokenizer with the special tokens that a renderer asks for."""
    specials = ["<｜begin▁of▁sentence｜>"] if family.startswith("deepseek") else []
    while True:
        tokenizer = tokenizer_with(specials, end="<|unused_end|>")
        try:
            RendererEncoder(tokenizer, family, ())
        except TemplateError as error:
            missing = re.search(r"oken (?:for )?'([^']*)'", str(error))
            if missing is None or missing[1] in specials:
                raise
            specials.append(missing[1])
        else:
            return tokenizer


def call(code: str, number: int, name: str = "python") -> dict[str, Any]:
    """A call of an assistant's message."""
    function = {"name": name, "arguments": {"code": code}}
    return {"id": f"functions.{name}:{number}", "type": "function", "function": function}


CODE = "if True:\n    print('</tool_call> \\n')"
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}]
TURNS = [
    ({"content": "Let me see.", "reasoning_content": "Hm, a sum.\nOr not?", "tool_calls": [call(CODE, 0)]}, ["2\n"]),
    ({"content": "", "reasoning_content": "So?", "tool_calls": [call("1", 1, "calculator")]}, ["Invalid call."]),
    ({"content": "", "reasoning_content": "So.", "tool_calls": [call("1 + 1", 2), call("2 + 2", 3)]}, ["2", " 4\n\n"]),
    ({"content": "It is 2.", "reasoning_content": "Done."}, []),
]  # fmt: skip
CODES = [[CODE], [None], ["1 + 1", "2 + 2"], []]


@dataclass
class Walk:
    """What came of the conversation in one family.

    Attributes:
        ids: of the rollout: the prompt, and turns and observations in turn.
        texts: of the turns, as the template writes them after what is before.
        turn_ids: of the turns, with their end tokens.
        codes: the calls of each turn that were read: their code, None for an invalid one.
        wanted: those that the turns make.
        notes: what the template can't express, and where the ids differ from what it renders.
    """

    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    turn_ids: list[list[int]] = field(default_factory=list)
    results: list[list[str]] = field(default_factory=list)
    codes: list[list[str | None]] = field(default_factory=list)
    wanted: list[list[str | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def walk(encoder: Encoder) -> Walk:
    """Roll the conversation out: each turn is sampled as the template writes it, the rest comes from the encoder."""
    render = _renderer_of(encoder)
    thinks = not encoder.decode(encoder.prompt_ids(PROMPT)[-8:]).rstrip().endswith(_NO_THOUGHT)
    done = Walk(ids=list(encoder.prompt_ids(PROMPT)))
    messages: list[dict[str, Any]] = [dict(message) for message in PROMPT]
    for (turn, results), codes in zip(TURNS, CODES, strict=True):
        message = {"role": "assistant", **turn}
        if not thinks:
            del message["reasoning_content"]
        try:
            text = _turn_text(encoder, render, message)
        except GtpoError:
            done.notes.append("no parallel calls" if len(codes) > 1 else f"can't write {turn}")
            continue
        calls = encoder.parse_turn(encoder._encode(text), done.ids)
        ids = [*encoder._encode(text), encoder.end_of((InvalidCall(""),) if codes else ())]
        done.codes.append([found.code if isinstance(found, ToolCall) else None for found in calls])
        done.wanted.append(codes)
        done.texts.append(text)
        done.results.append(results)
        done.turn_ids.append(ids)
        observed = encoder.observation_ids(results, ids, done.ids) if results else []
        done.ids += [*ids, *observed]
        tools = [
            {"role": "tool", "name": "python", "tool_call_id": one["id"], "content": result}
            for one, result in zip(turn.get("tool_calls", []), results, strict=True)
        ]
        messages += [message, *tools]
    rendered = render(messages, False)
    shared = shared_length(rendered, done.ids)
    if shared < len(done.ids) and shared < len(rendered):
        before, own, other = (
            encoder.decode(part) for part in (done.ids[:shared], done.ids[shared:], rendered[shared:])
        )
        done.notes.append(f"after {before[-24:]!r}: {own[:40]!r}, the template has {other[:40]!r}")
    return done


def _turn_text(encoder: Encoder, render: Any, message: dict[str, Any]) -> str:
    """A turn as the template writes it where the model goes on, without its end token."""
    prompt, whole = render(PROMPT, True), render([*PROMPT, message], False)
    start, text = encoder.decode(prompt), encoder.decode(whole)
    ids = encoder._encode(text[len(start) :]) if text.startswith(start) else whole[shared_length(prompt, whole) :]
    if start.rstrip().endswith("<think>") and "</think>" not in encoder.decode(ids):
        ids = [*encoder._encode("Hm.\n</think>\n\n"), *ids]  # the template leaves it out, a model would write one
    end = next((k for k, i in enumerate(ids) if i in encoder.end_ids), len(ids))
    return encoder.decode(ids[:end])


def _renderer_of(encoder: Encoder) -> Any:
    """Messages to ids: the tokenizer's chat template if it has one, else the renderer."""
    if encoder.tokenizer.chat_template is None:
        assert isinstance(encoder, RendererEncoder)
        return lambda messages, generate: encoder._ids(messages, generate=generate)
    template = ChatTemplate(encoder.tokenizer, encoder.tools, encoder.template_kwargs)
    return lambda messages, generate: encoder._encode(template.render(messages, generate=generate))


def fenced_frame(encoder: Encoder) -> tuple[str, str]:
    """What an encoder puts between a turn with a fenced call and the next turn, and the template's conversation."""
    question = {"role": "user", "content": "What is 1 + 1?"}
    turn = {"role": "assistant", "content": encoder.format.render_call("1 + 1")}
    rendered = _renderer_of(encoder)([question, turn, *encoder.observation_messages(["2"])], True)
    return encoder.decode(encoder.observation_ids(["2"])), encoder.decode(rendered)


def encoders() -> dict[str, Any]:
    """By name, what makes the encoder of a chat template of TRL's or of a family of `renderers`."""
    made: dict[str, Any] = {}
    for name in NAMES:
        made[name] = lambda name=name: make_encoder(template_tokenizer(name), "auto", (PYTHON,))
    for family in BUILDABLE:
        made[family] = lambda family=family: RendererEncoder(family_tokenizer(family), family, (PYTHON,))
    return made


_KNOWN = {
    "gemma4": "the template writes text beside a call behind the call's result",
    "gemma4_v2.jinja": "the template strips results",
    "llama3_2.jinja": "the template writes today's date, the renderer 26 Jul 2024; one call per turn",
    "llama3_1.jinja": "one call per turn",
    "llama-3": "one call per turn",
    "kimi-k2.5": "the template leaves the thoughts of earlier turns out",
    "deepseek-r1": "the template leaves the thoughts of earlier turns out",
    "gptoss.jinja": "the template leaves the thoughts of earlier turns out; one call per turn",
    "laguna-xs.2": "`renderers` leaves out the line break after a turn",
    "laguna-m.1": "`renderers` leaves out the line break after a turn",
}
KNOWN = _KNOWN | {
    name: _KNOWN["gemma4"]
    for name in NAMES
    if "diffusion_gemma" in name or re.fullmatch(r"gemma4(_v[345])?\.jinja", name)
}
KNOWN["gptoss_training.jinja"] = KNOWN["gptoss.jinja"]
"""Where the ids of the conversation are not those that the template renders, and why."""
MARKS = ("<!-- made by tests/families.py -->", "<!-- end -->")


def table() -> str:
    """The table of docs/models.md."""
    rows: list[str] = []
    counts = {"same": 0, "known": 0, "fenced": 0}
    for name, make in encoders().items():
        encoder = make()
        choice = encoder.choice.partition(": ")[0] if not encoder.choice.startswith("declared") else encoder.format.name
        if encoder.format.name == "fenced":
            counts["fenced"] += 1
            rows.append(f"| {name} | fenced | |")
            continue
        same = not walk(encoder).notes
        counts["same" if same else "known"] += 1
        rows.append(f"| {name} | `{choice}` | {'same' if same else KNOWN[name]} |")
    total = sum(counts.values())
    lines = [
        f"Of {total} chat templates and families, {counts['same']} give a rollout the ids that the template renders",
        f"for the same conversation, {counts['known']} do but for the difference that is named, and {counts['fenced']}",
        "are used with `fenced`.",
        "",
        "| template of TRL, or family of `renderers` | `auto` takes | ids of a rollout against the template's |",
        "|---|---|---|",
        *rows,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    page = Path(__file__).parents[1] / "docs" / "models.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}", encoding="utf-8")
