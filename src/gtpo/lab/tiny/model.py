"""A character tokenizer with a chat template, and a small Llama, both created from scratch."""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
ROLES = ("<system>", "<user>", "<assistant>", "<tool>")
PHRASES = (
    "```python\n",
    "\n```",
    "```output\n",
    "\\boxed{",
    "Invalid call: ",
    "the code is empty.",
    "the ` ` `python block was not closed with a line ` ` `.",
    "[no output]",
)
"""Fixed strings of the conversation that are one token each, so that sequences stay short."""

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def make_tokenizer(more_phrases: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per printable ASCII character, plus special tokens, `PHRASES` and further phrases."""
    phrases = [*PHRASES, *more_phrases]
    characters = [c for c in string.printable if c == "\n" or c.isprintable()]
    specials = [PAD, END, UNKNOWN, *ROLES]
    vocabulary = {token: i for i, token in enumerate([*specials, *characters, *phrases])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer.add_tokens([AddedToken(phrase, special=False, normalized=False) for phrase in phrases])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=512,
    )


def make_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, hidden_size: int = 96, layers: int = 3
) -> LlamaForCausalLM:
    """A freshly initialised Llama of about 300,000 parameters.

    Weights are initialised with a standard deviation of about 1/sqrt(hidden_size): with transformers' default of 0.02,
    a model this narrow takes more than twice as many steps to learn to copy a number. The rotary base is 200, since
    sequences are short: with the usual 10,000 some seeds had not learned to copy by the end of the cold start.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=hidden_size**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 200.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)
