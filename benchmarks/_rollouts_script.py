"""Scripted rollouts for `rollouts.py`: the model computes everything as usual, then its logits favour planned tokens.

The tokens of each turn are planned beforehand: reasoning of random length, then a well-formed call, or no call if the
turn is the answer. A hook on the model's forward pass adds a large number to the logit of the planned next token. It
derives that token only from the last token and its position, so it works with any generation loop: with or without left
padding, with whole histories or a cache kept between turns, and with packed sequences. Sampling is unchanged: it draws
from a softmax over the whole vocabulary, in which one token has all the probability.

How the last token and its position identify a rollout:

- The reasoning token at position x is word number (rollout + a number drawn for x), which differs between rollouts.
- Every turn starts after the same token, but no two turns start at the same position; turn lengths are changed by a few
  tokens to ensure this.
- The first turns of a group do start at the same position. There, the planned first tokens are assigned to the rollouts
  of the group in order, as if sampling had made them differ.

The call is one token that is added to the vocabulary, so nothing else can be sampled within it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count, cycle
from typing import Any

import torch
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer

from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.rollout import ChatEncoder, Prompts, get_format
from gtpo.tasks.problems import Problem
from gtpo.testing import with_chat_template

CALL = get_format("tool_call").render_call("6 * 7")
OBSERVATION = "42"
GROUP = 8
MEDIAN, SPREAD, SHORTEST, LONGEST = 40, 0.7, 8, 160
"""Of the tokens in a turn: a log-normal distribution, cut."""
TURNS = (2, 3, 4)
ROOM, CONTEXT = 1024, 4096
"""Tokens that a completion may hold, more than any plan has, and that the models take at least."""
_FAVOUR = 1e4
_WORDS = re.compile(r"[ A-Za-z0-9,.;:!?+*=-]+")


def python(code: str):
    """Run a Python program and return what it printed and the value of its last expression.

    Args:
        code: The program to run.
    """


@dataclass
class Script:
    """What is planned for each rollout, and the hook that makes a model follow it.

    Attributes:
        turns: for each rollout the tokens of each of its turns, the end token included.
        following: the token after a token at a position, but for first turns.
        first: the same for first turns: one for each rollout of a group.
        passes: forward passes seen since `reset`.
        positions: ids that went into them, padding and idle rows included.
    """

    turns: list[list[int]] = field(default_factory=list)
    following: dict[tuple[int, int], int] = field(default_factory=dict)
    first: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    passes: int = 0
    positions: int = 0

    def add(self, before: int, at: int, tokens: Sequence[int], *, first: bool) -> None:
        """Plan a turn, starting after `before` at position `at`: a new rollout's first one, or the last one's next."""
        if first:
            self.turns.append([])
            self.first.setdefault((before, at - 1), []).append(tokens[0])
        else:
            self.following[before, at - 1] = tokens[0]
        self.following.update({(tokens[i], at + i): tokens[i + 1] for i in range(len(tokens) - 1)})
        self.turns[-1].append(len(tokens))

    def reset(self) -> None:
        """Before each run of the batch."""
        self._deal = {key: cycle(tokens) for key, tokens in self.first.items()}
        self.passes = self.positions = 0

    def hook(self, model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """For `register_forward_hook(..., with_kwargs=True)`; changes `output.logits` in place."""
        ids_R_T, kept, logits = kwargs["input_ids"], kwargs.get("logits_to_keep"), output.logits
        positions_R_T = kwargs["position_ids"].expand_as(ids_R_T)
        self.passes += 1
        self.positions += ids_R_T.numel()
        if isinstance(kept, torch.Tensor):  # sequences packed into one row, as in continuous batching
            ids_R, positions_R, logits_R_V = ids_R_T[0, kept], positions_R_T[0, kept], logits[0]
        else:
            ids_R, positions_R, logits_R_V = ids_R_T[:, -1], positions_R_T[:, -1], logits[:, -1]
        rows, tokens = [], []
        for row, key in enumerate(zip(ids_R.tolist(), positions_R.tolist(), strict=True)):
            token = self._next(key)
            if token is not None:
                rows.append(row)
                tokens.append(token)
        if rows:
            logits_R_V[rows, tokens] += _FAVOUR

    def _next(self, key: tuple[int, int]) -> int | None:
        return next(self._deal[key]) if key in self._deal else self.following.get(key)


@dataclass
class Workload:
    """A model, prompts for it in groups, and a script.

    Attributes:
        words: ids that reasoning is made of.
    """

    name: str
    model: Any
    tokenizer: Any
    prompts: list[list[dict[str, str]]]
    words: list[int]
    script: Script = field(default_factory=Script)

    def __post_init__(self) -> None:
        self.encoder = ChatEncoder(self.tokenizer, get_format("tool_call"))

    def plan(self, plans: Sequence[Sequence[int]], seed: int) -> None:
        """Script turns of these lengths; those of turns with a call are moved a little where they must be."""
        self.script = script = Script()
        call, end = self.tokenizer.convert_tokens_to_ids(CALL), self.tokenizer.eos_token_id
        frame = len(self.encoder.observation_ids([OBSERVATION]))
        shift = random.Random(seed).choices(range(len(self.words)), k=CONTEXT)
        openings = [self.encoder.prompt_ids(prompt) for prompt in self.prompts]
        starts = {len(ids) for ids in openings}
        if len(starts) < len(openings) // GROUP:
            raise SystemExit(f"{self.name}: two groups have prompts of the same length; use another seed")
        for rollout, (ids, lengths) in enumerate(zip(openings, plans, strict=True)):
            at = len(ids)
            for turn, length in enumerate(lengths):
                calls = turn + 1 < len(lengths)
                if calls:
                    length = _nearest(length, lambda n, at=at: at + n + frame not in starts)
                    starts.add(at + length + frame)
                ending = [call, end] if calls else [end]
                said = range(at, at + length - len(ending))
                tokens = [self.words[(shift[x % CONTEXT] + rollout) % len(self.words)] for x in said] + ending
                script.add(ids[-1], at, tokens, first=turn == 0)
                at += length + frame

    @contextmanager
    def following(self, model: Any) -> Iterator[Script]:
        """Makes a model follow the script inside."""
        self.script.reset()
        handle = model.register_forward_hook(self.script.hook, with_kwargs=True)
        try:
            yield self.script
        finally:
            handle.remove()


def real_workload(folder: str, dtype: torch.dtype, rollouts: int, seed: int) -> Workload:
    """The model and tokenizer of a folder, with Qwen2.5's chat template; needs `<|im_start|>` and `<|im_end|>`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.eos_token = _qwen_template(), "<|im_end|>"
    tokenizer.add_tokens([AddedToken(CALL, normalized=False)])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    return _workload(folder, model, tokenizer, rollouts, seed)


def tiny_workload(rollouts: int, seed: int) -> Workload:
    """The embedded default's model, untrained, in float32.

    Its tokenizer has one token per character. The parts of Qwen2.5's chat template that are the same in every
    conversation are one token each, as such phrases are in the default's own template.
    """
    marks = ("<|im_start|>", "<|im_end|>")
    tokenizer = with_chat_template(make_tokenizer(), _qwen_template(), end=marks[1], specials=marks)
    system, *_ = tokenizer.apply_chat_template(_messages("?"), tools=[python], tokenize=False).split(marks[1])
    phrases = (CALL, system.removeprefix(marks[0]), "user\n", "assistant\n", "<tool_response>\n", "\n</tool_response>")
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    return _workload("tiny", make_model(tokenizer, seed=seed), tokenizer, rollouts, seed)


def _qwen_template() -> str:
    """As TRL ships it, so that it knows how to parse calls."""
    return files("trl").joinpath("chat_templates", "qwen2_5.jinja").read_text(encoding="utf-8")


def _workload(name: str, model: Any, tokenizer: Any, rollouts: int, seed: int) -> Workload:
    model.config.use_cache = True
    model.config.max_position_embeddings = max(CONTEXT, model.config.max_position_embeddings)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.eval()
    words = _words(tokenizer)
    if rollouts > len(words):
        raise SystemExit(f"{name}: the tokenizer has enough plain words for at most {len(words)} rollouts")
    prompts = []
    for group in range(rollouts // GROUP):
        drawn = random.Random(seed + group).choices(words, k=16 * (1 + group))
        prompts += [_messages(tokenizer.decode(drawn).strip())] * GROUP
    workload = Workload(name, model, tokenizer, prompts, words)
    workload.plan(drawn_turns(rollouts, seed), seed)
    return workload


def _messages(question: str) -> list[dict[str, Any]]:
    return Prompts(get_format("tool_call")).messages(Problem("", question, ""))


def _words(tokenizer: Any) -> list[int]:
    """Ids of plain text: nothing that a parser or a template would take for markup."""
    texts = ((i, tokenizer.decode([i])) for i in range(len(tokenizer)))
    return [i for i, text in texts if _WORDS.fullmatch(text)][-1024:]


def drawn_turns(rollouts: int, seed: int) -> list[list[int]]:
    """For each rollout the tokens of its turns: two to four, of lengths with a long tail."""
    rng = random.Random(seed)
    plans = [[_length(rng) for _ in range(TURNS[i % len(TURNS)])] for i in range(rollouts)]
    rng.shuffle(plans)
    return plans


def _length(rng: random.Random) -> int:
    return min(LONGEST, max(SHORTEST, round(MEDIAN * rng.lognormvariate(0, SPREAD))))


def _nearest(length: int, allowed: Callable[[int], bool]) -> int:
    """The allowed length closest to the wanted one."""
    near = (length + step * sign for step in count() for sign in (1, -1))
    return next(n for n in near if n >= SHORTEST and allowed(n))
