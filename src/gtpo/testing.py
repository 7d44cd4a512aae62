"""Fakes for tests of code that uses gtpo: a scripted backend, a tokenizer with another chat template, a made-up run."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from transformers import AddedToken, PreTrainedTokenizerFast

from gtpo.credit_assignment import CreditSettings, compute_credit, credit_inputs, credit_metrics
from gtpo.rollout.backends.base import Generation, Request
from gtpo.rollout.settings import Sampling
from gtpo.rollout.token_offsets import TokenPieces
from gtpo.similarity import LexicalSimilarity
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import Verdict
from gtpo.training.batch import Batch
from gtpo.training.loss_policy import LossPolicy
from gtpo.training.metrics import rollout_counts, rollout_metrics
from gtpo.training.recorder import RunRecorder
from gtpo.training.serialize import rollout_rows
from gtpo.types import InvalidCall, Observation, StopReason, ToolCall, Trajectory, Turn


class ScriptedBackend:
    """A backend that replays scripted turns: for each prompt a list of turns, in order.

    Args:
        tokenizer: encodes the turns.
        scripts: for each prompt's ids (as a tuple), the texts of its turns; a text written as `text + CUT` has no end
            token, as if it had reached the token limit.
        max_context: the model's context length.
    """

    CUT = "\0cut"

    def __init__(self, tokenizer: Any, scripts: Mapping[tuple[int, ...], Sequence[str]], *, max_context: int = 2**20):
        self.tokenizer = tokenizer
        self.scripts = {prompt: list(turns) for prompt, turns in scripts.items()}
        self.max_context = max_context
        self.contexts: list[list[int]] = []
        self.finished: list[int] = []

    @asynccontextmanager
    async def serve(
        self, rollouts: int, *, sampling: Sampling, end_ids: frozenset[int], seed: int
    ) -> AsyncIterator[ScriptedBackend]:
        """See `Backend.serve`."""
        yield self

    async def generate(self, request: Request) -> Generation:
        """See `GenerationSession.generate`. Turns are cut at the token limit."""
        context = list(request.context)
        self.contexts.append(context)
        text = next(turns for prompt, turns in self.scripts.items() if tuple(context[: len(prompt)]) == prompt)[
            request.turn
        ]
        ids = self.tokenizer.encode(text.removesuffix(self.CUT), add_special_tokens=False)
        if not text.endswith(self.CUT):
            ids.append(self.tokenizer.eos_token_id)
        ids = ids[: request.max_new_tokens]
        return Generation(tuple(ids), tuple(-float(i) for i in ids))

    def finish(self, rollout: int) -> None:
        """See `GenerationSession.finish`."""
        self.finished.append(rollout)


def with_chat_template(
    tokenizer: PreTrainedTokenizerFast, template: str, *, end: str, specials: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer with another chat template, further special tokens, and `end` as its end-of-turn token."""
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"additional_special_tokens": [AddedToken(token) for token in specials]})
    changed.eos_token = end
    changed.chat_template = template
    return changed


def made_up_run(
    path: str | Path,
    *,
    steps: int = 3,
    groups: int = 2,
    group_size: int = 4,
    turns: int = 4,
    fewest_turns: int = 1,
    settings: CreditSettings | None = None,
    text: str = "x = {i}\nprint(x * 2)  # a comment\n",
    seed: int = 0,
) -> Path:
    """Write a run's directory with random rollouts, using the code that records real ones.

    Args:
        path: the directory.
        steps, groups, group_size: number of steps, of groups per step and of rollouts per group.
        turns, fewest_turns: largest and smallest number of turns per rollout.
        settings: settings of the credit.
        text: code of a call, with `{i}` for a number.
        seed: seed of all random choices.
    """
    rng = random.Random(seed)
    settings = settings or CreditSettings()
    recorder = RunRecorder(path)
    recorder.start_afresh()
    recorder.write_config({"config": {"algorithm": "gtpo", **asdict(settings)}})
    pieces = TokenPieces(lambda ids: "".join(map(chr, ids)))
    for step in range(1, steps + 1):
        rollouts = [_made_up_rollout(rng, fewest_turns, turns, text) for _ in range(groups * group_size)]
        problems = [
            Problem(id=f"p/{step}/{i // group_size}", question=f"What is {step} + {i // group_size}?", answer="7")
            for i in range(len(rollouts))
        ]
        verdicts = [
            Verdict(
                passed, float(passed), "equal to the gold answer" if passed else "not equal", "7" if passed else "8"
            )
            for passed in (rng.random() < 0.5 for _ in rollouts)
        ]
        inputs = tuple(
            credit_inputs(rollout, passed=verdict.passed, group_id=i // group_size)
            for i, (rollout, verdict) in enumerate(zip(rollouts, verdicts, strict=True))
        )
        credit = compute_credit(inputs, LexicalSimilarity(), settings)
        count = len(rollouts)
        batch = Batch(
            trajectories=tuple(rollouts),
            problems=tuple(problems),
            verdicts=tuple(verdicts),
            has_answer=(True,) * count,
            policies=cast("tuple[LossPolicy, ...]", ("keep",) * count),
            first=0,
            inputs=inputs,
            failures=(None,) * count,
            credit=credit,
            rewards=tuple(credit.accuracy_B.tolist()),
            verify_s=0.0,
            credit_s=0.0,
        )
        recorder.write_rollouts(step, rollout_rows(batch, pieces, range(count)))
        counts = rollout_metrics([rollout_counts(rollouts)])
        recorder.append_metrics({"step": step, **credit_metrics(inputs, credit), **counts, "entropy": 0.5})
    return Path(path)


def _made_up_rollout(rng: random.Random, fewest: int, turns: int, code: str) -> Trajectory:
    count = rng.randint(fewest, turns)
    made = [_made_up_turn(rng, code, last=j == count - 1) for j in range(count)]
    return Trajectory(tuple(range(20)), tuple(made), StopReason.ANSWER)


def _made_up_turn(rng: random.Random, code: str, last: bool) -> Turn:
    program = code.replace("{i}", str(rng.randint(0, 9)))
    call: ToolCall | InvalidCall = InvalidCall("the code is empty") if rng.random() < 0.2 else ToolCall(program)
    text = "The answer is \\boxed{7}." if last else f"Let me see.\n```python\n{program}\n```"
    ids = (*map(ord, text), 0)
    seen = None
    if not last:
        status = "invalid" if isinstance(call, InvalidCall) else rng.choice(["ok", "ok", "ok", "error", "timeout"])
        seen = Observation(f"{rng.randint(0, 99)}", (status,), tuple(range(12)), 0.01)
    return Turn(text, ids, () if last else (call,), seen, tuple(-rng.expovariate(2.0) for _ in ids))
