"""What each rollout of `fault_soak.py` does, by its number: known to the soak and to the stub model alike."""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_QUESTION = re.compile(r"rollout (\d+)/(\d+)/(\d+)/([0-9.]+)/([01])\.")


@dataclass(frozen=True)
class Call:
    """One call of a turn.

    Attributes:
        tool: its name.
        code: the program, or the word that is looked up.
        text: what its result must hold.
        statuses: how it may end.
        faulty: whether it is an injected fault.
        breaks: whether the tool itself fails.
        needs_state: whether it may print "lost" where the session's process was lost.
    """

    tool: str
    code: str
    text: str
    statuses: tuple[str, ...] = ("ok",)
    faulty: bool = False
    breaks: bool = False
    needs_state: bool = False

    def written(self) -> str:
        """As the model writes it."""
        name = "code" if self.tool == "python" else "word"
        return f"<tool_call>\n{json.dumps({'name': self.tool, 'arguments': {name: self.code}})}\n</tool_call>"


@dataclass(frozen=True)
class Planned:
    """The calls of each turn of one rollout; after the last one it answers."""

    name: str
    turns: tuple[tuple[Call, ...], ...]


def question(seed: int, batch: int, number: int, faults: float) -> str:
    """The prompt of a rollout, from which the stub knows it."""
    return f"rollout {seed}/{batch}/{number}/{faults}/{batch % 2}."


def planned_of(text: str) -> Planned:
    """The plan of the rollout whose context this is."""
    match = _QUESTION.search(text)
    assert match, text[:200]
    seed, batch, number, faults, state = match.groups()
    return plan(int(seed), int(batch), int(number), float(faults), state == "1")


def plan(seed: int, batch: int, number: int, faults: float, with_state: bool) -> Planned:
    """The calls of a rollout: one to five turns of one to three calls, of which the share `faults` goes wrong."""
    rng = random.Random(f"{seed} {batch} {number}")
    turns: list[tuple[Call, ...]] = []
    if with_state:
        turns.append((Call("python", f"kept = {number + 1000 * batch}\nprint('kept')", "kept"),))
    for _ in range(rng.randint(1, 5)):
        turns.append(tuple(_call(rng, faults) for _ in range(rng.choice((1, 1, 1, 2, 3)))))
    if with_state:
        code = "print(globals().get('kept', 'lost'))"
        turns.append((Call("python", code, f"{number + 1000 * batch}", needs_state=True),))
    return Planned(f"{batch}/{number}", tuple(turns))


def said(planned: Planned, turn: int, context: Sequence[int]) -> str:
    """What the model says in a turn; it holds a checksum of the ids that it was given."""
    seen = zlib.crc32(json.dumps(list(context)).encode())
    if turn == len(planned.turns):
        return f"{planned.name} has seen {seen}: \\boxed{{{planned.name}}}"
    return f"{planned.name}, turn {turn}, has seen {seen}\n" + "\n".join(c.written() for c in planned.turns[turn])


def _call(rng: random.Random, faults: float) -> Call:
    n = rng.randrange(10**6)
    if rng.random() < faults:
        return rng.choice(_FAULTY)(n)
    return rng.choice(_HONEST)(n)


_HONEST = (
    lambda n: Call("python", f"print({n} * 7)", f"{n * 7}"),
    lambda n: Call("python", f"{n} + 1", f"{n + 1}"),
    lambda n: Call("python", f"import numpy as np\nprint(int(np.arange(4).sum()) + {n})", f"{n + 6}"),
    lambda n: Call("python", f"open('a', 'w').write('{n}')\nprint(open('a').read())", f"{n}"),
    lambda n: Call("look", f"find {n}", f"value {n}"),
    lambda n: Call("look_later", f"find {n}", f"value {n}"),
    lambda n: Call("brittle", f"find {n}", f"value find {n}"),
)
_LATE = "no result within"
_FAULTY = (
    lambda n: Call("python", f"while True: {n}", "timed out", ("timeout",), True),
    lambda n: Call("python", f"import time\ntime.sleep({n} + 60)", "timed out", ("timeout",), True),
    lambda n: Call("python", f"a = [{n}]\nwhile True: a.append(bytearray(1 << 20))", "", ("memory",), True),
    lambda n: Call("python", f"while True: print({n})", "", ("output_limit",), True),
    lambda n: Call("python", f"print({n})\nraise ValueError({n})", f"ValueError: {n}", ("error",), True),
    lambda n: Call("python", f"import ctypes\nctypes.memset(8, {n % 9 + 1}, 64)", "", ("crashed",), True),
    lambda n: Call("python", f"import os\nos._exit({n % 100 + 1})", "", ("error",), True),
    lambda n: Call("python", f"import os\nos.fork(), {n}", "Error", ("error",), True),
    lambda n: Call("look", f"raise {n}", f"ValueError: no {n}", ("error",), True),
    lambda n: Call("look", f"block {n}", _LATE, ("timeout",), True),
    lambda n: Call("look_later", f"raise {n}", f"ValueError: no {n}", ("error",), True),
    lambda n: Call("look_later", f"block {n}", _LATE, ("timeout",), True),
    lambda n: Call("look", f"odd {n}", f"\x1b[31m{n}\ufffd\x07", ("ok",), True),
    lambda n: Call("look", f"find {n} \ud800", f"value {n} \ufffd", ("ok",), True),
    lambda n: (
        Call("brittle", f"break {n}", "", (), True, breaks=True)
        if n % 4 == 0
        else Call("python", f"print('\ud800{n}')", "", ("error", "ok"), True)
    ),
)


def byte_tokenizer() -> Any:
    """A token a byte, with the chat template of Qwen2.5."""
    from importlib.resources import files

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = files("trl").joinpath("chat_templates", "qwen2_5.jinja").read_text(encoding="utf-8")
    return fast
