r"""How likely the policy finds the gold answer before each turn of a rollout, for turn rewards that need it.

A turn reward function with a parameter `answer_logprobs` (such as `gtpo.turn_rewards.information_gain`) is given, for
each rollout, one number per turn: the mean log-probability of the gold answer's tokens if the policy answered in place
of that turn, at temperature 1 and without a gradient. The answer has the form that the prompt asks for, `\boxed{...}`;
its frame is given and not counted. Of several aliases, the most likely one counts at each turn.

This takes one forward pass per rollout, and one per prompt for all rollouts that make no call: the answer is appended
to the rollout once for each turn, and an explicit attention mask lets each copy see only the rollout up to its turn and
itself. Models that keep more state than keys and values of their tokens take one pass per turn.

A rollout gets None if the problem has no gold answer to write (none at all, or tests instead of one) or if the rollout
failed. If an answer no longer fits into the context, the number of the previous turn is repeated.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from gtpo.rollout.backends.transformers import attends_to_all, generating, mask_for
from gtpo.rollout.chat_template import shared_length
from gtpo.rollout.encoding import Encoder
from gtpo.rollout.prompts import Prompts
from gtpo.rollout.token_offsets import TokenPieces
from gtpo.tasks.problems import Problem
from gtpo.training.trl_compat import is_peft_model
from gtpo.turn_rewards import ANSWER_LOGPROBS
from gtpo.types import Trajectory

_TOKENS = 16_384
"""Tokens per forward pass, including padding."""
_THOUGHT, _END_OF_THOUGHT = "<think>", "</think>\n\n"
_TAIL = 16
"""Ids of a prompt in which it may open a thought."""


@dataclass(frozen=True)
class _Answer:
    """A gold answer as the policy would write it, and which of its ids belong to the answer and not to its frame."""

    ids: tuple[int, ...]
    counted: tuple[bool, ...]


@dataclass(frozen=True)
class _Copy:
    """An answer in place of a turn.

    Attributes:
        turn: index of the turn.
        start: number of tokens of the rollout before `ids`.
        ids: the token before the turn, which predicts the answer's first token, and the answer.
        counted: for each of the ids, whether it belongs to the answer itself.
    """

    turn: int
    start: int
    ids: tuple[int, ...]
    counted: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class _Row:
    """One row of a forward pass: a rollout without its last turn, and the copies of the answer appended to it."""

    ids: tuple[int, ...]
    copies: tuple[_Copy, ...]

    @property
    def behind(self) -> int:
        """Number of tokens of the copies."""
        return sum(map(len, self.copies))

    def __len__(self) -> int:
        return len(self.ids) + self.behind


class AnswerScorer:
    """Scores gold answers with a policy.

    Args:
        encoder: the rollouts' encoder; encodes the answer.
        prompts: give the form in which a problem asks for its answer.
    """

    def __init__(self, encoder: Encoder, prompts: Prompts) -> None:
        self._encoder, self._prompts = encoder, prompts
        self._pieces = TokenPieces(encoder.decode)

    def columns(
        self, model: Any, trajectories: Sequence[Trajectory], problems: Sequence[Problem], group_size: int
    ) -> dict[str, list[Any]]:
        """Arguments for turn reward functions: `logprobs` as `answer_logprobs`, and `group_ids`.

        Args:
            model, trajectories, problems: see `logprobs`.
            group_size: rollouts per group; groups are contiguous and may be spread over processes.
        """
        first = PartialState().process_index * len(trajectories)
        groups = [(first + i) // group_size for i in range(len(trajectories))]
        return {ANSWER_LOGPROBS: self.logprobs(model, trajectories, problems), "group_ids": groups}

    def logprobs(
        self, model: Any, trajectories: Sequence[Trajectory], problems: Sequence[Problem]
    ) -> list[list[float] | None]:
        """For each rollout, one number per turn, or None; see the module.

        Args:
            model: the policy, not wrapped for distribution, with all its weights; PEFT included.
            trajectories, problems: the rollouts, and the problem of each.
        """
        whole = attends_to_all(model)
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31
        rows: dict[_Row, list[int]] = {}  # and their rollouts: those of a prompt that make no call share theirs
        found: list[list[float | None]] = []
        for rollout, (trajectory, problem) in enumerate(zip(trajectories, problems, strict=True)):
            before, places = _before_turns(trajectory)
            answers = [] if trajectory.stop_reason.is_failure else self._answers(problem, before)
            found.append([None] * len(places))
            copies = [
                _Copy(turn, place - 1, (before[place - 1], *answer.ids), (False, *answer.counted))
                for turn, place in enumerate(places)
                for answer in answers
                if place + len(answer.ids) <= longest
            ]
            together = [copies] if whole and copies else [[copy] for copy in copies]
            for some in together:
                row = _Row(tuple(before if whole else before[: some[0].start]), tuple(some))
                rows.setdefault(row, []).append(rollout)
        for (row, rollouts), numbers in zip(rows.items(), _mean_logprobs(model, list(rows), whole), strict=True):
            for values in (found[rollout] for rollout in rollouts):
                for copy, number in zip(row.copies, numbers, strict=True):
                    best = values[copy.turn]
                    values[copy.turn] = number if best is None else max(number, best)
        return [_carried(values) for values in found]

    def _answers(self, problem: Problem, context: Sequence[int]) -> list[_Answer]:
        """The gold answer and its aliases as the policy would write them; empty if there is nothing to write."""
        golds = list(dict.fromkeys(gold.strip() for gold in problem.golds if gold.strip()))
        if not golds or self._prompts.answer_type(problem) == "tests":
            return []
        opened = self._encoder.decode(context[-_TAIL:]).rstrip().endswith(_THOUGHT)
        frame = (_END_OF_THOUGHT if opened else "") + "\\boxed{"
        return [self._answer(frame, gold) for gold in golds]

    def _answer(self, frame: str, gold: str) -> _Answer:
        encode = partial(self._encoder.tokenizer.encode, add_special_tokens=False)
        ids = encode(frame + gold + "}")
        widths = self._pieces.chars(ids, frame + gold + "}")
        if widths is None:  # a tokenizer that does not give its text back: all that is not of the frame
            first = shared_length(ids, encode(frame))
            return _Answer(tuple(ids), tuple(i >= first for i in range(len(ids))))
        ends = list(accumulate(widths))
        answer = range(len(frame), len(frame) + len(gold))
        counted = [end > answer.start and end - width < answer.stop for end, width in zip(ends, widths, strict=True)]
        kept = len(counted) - counted[::-1].index(True)
        return _Answer(tuple(ids[:kept]), tuple(counted[:kept]))


def _before_turns(trajectory: Trajectory) -> tuple[list[int], list[int]]:
    """The ids before the last turn, and the number of ids before each turn."""
    ids, places = list(trajectory.prompt_ids), [len(trajectory.prompt_ids)]
    for turn in trajectory.turns[:-1]:
        ids += [*turn.token_ids, *(turn.observation.token_ids if turn.observation else ())]
        places.append(len(ids))
    return ids, places


def _carried(values: Sequence[float | None]) -> list[float] | None:
    """Fill each missing number with that of the previous turn; None if the first turn has none."""
    kept: list[float] = []
    for value in values:
        if value is None and not kept:
            return None
        kept.append(kept[-1] if value is None else value)
    return kept


@torch.no_grad()
def _mean_logprobs(model: Any, rows: Sequence[_Row], whole: bool) -> list[list[float]]:
    """For each row, the mean log-probability of each copy's counted ids."""
    found: list[list[float]] = [[] for _ in rows]
    with generating(model):
        for places in _batches(rows):
            for place, numbers in zip(places, _pass(model, [rows[i] for i in places], whole), strict=True):
                found[place] = numbers
    return found


def _batches(rows: Sequence[_Row]) -> Iterator[list[int]]:
    """Indices of rows of similar length, as many as fit into one pass."""
    batch: list[int] = []
    for place in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if batch and (len(batch) + 1) * len(rows[batch[0]]) > _TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _pass(model: Any, rows: Sequence[_Row], whole: bool) -> list[list[float]]:
    """One forward pass with rows padded on the left, so that all copies are at the end."""
    width, behind = max(map(len, rows)), max(row.behind for row in rows)
    shape = (len(rows), width)
    ids, positions, copy_of = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    sees = torch.zeros(shape, dtype=torch.long)  # columns of the rollout that a token sees
    starts = [width - len(row) for row in rows]
    counted = []  # (row, column, copy) of the ids that count
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        column = start + len(row.ids)
        ids[i, start:column] = torch.tensor(row.ids)
        positions[i, start:column] = torch.arange(len(row.ids))
        sees[i, start:column] = torch.arange(start, column) + 1
        for number, copy in enumerate(row.copies, start=1):
            span = slice(column, column + len(copy))
            ids[i, span] = torch.tensor(copy.ids)
            positions[i, span] = torch.arange(copy.start, copy.start + len(copy))
            copy_of[i, span], sees[i, span] = number, start + copy.start
            counted += [(i, column + k, number - 1) for k, counts in enumerate(copy.counted) if counts]
            column = span.stop
    real = torch.arange(width) >= torch.tensor(starts)[:, None]
    options = {"attention_mask": mask_for(model, _mask(copy_of, sees, real)[:, None]) if whole else real.long()}
    inputs = {"input_ids": ids, "position_ids": positions, **options}
    forward = (model.get_base_model() if is_peft_model(model) else model).forward
    keeps = "logits_to_keep" in inspect.signature(forward).parameters
    kept = {"logits_to_keep": behind} if keeps else {}
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    logits = model(**inputs, **kept, use_cache=False).logits[:, -behind:]
    at_row, at_column, of_copy = torch.tensor(counted).T
    predicting = logits[at_row.to(logits.device), (at_column - 1 - (width - behind)).to(logits.device)].float()
    targets = ids[at_row, at_column].to(logits.device)
    values = predicting.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0].cpu().double()
    sums = torch.zeros(len(rows), max(len(row.copies) for row in rows), dtype=torch.float64)
    counts = torch.zeros_like(sums).index_put((at_row, of_copy), torch.ones_like(values), accumulate=True)
    means = (sums.index_put((at_row, of_copy), values, accumulate=True) / counts).tolist()
    return [numbers[: len(row.copies)] for numbers, row in zip(means, rows, strict=True)]


def _mask(copy_of: Tensor, sees: Tensor, real: Tensor) -> Tensor:
    """Which tokens each token attends to, shape (B, T, T): the rollout up to its place, and its own copy up to itself.

    Padding attends to itself, so that no row of the softmax is empty.
    """
    columns = torch.arange(copy_of.shape[1])
    of_rollout = (copy_of == 0) & real
    before = of_rollout[:, None, :] & (columns < sees[:, :, None])
    within = (copy_of[:, None, :] == copy_of[:, :, None]) & (copy_of > 0)[:, :, None] & (columns <= columns[:, None])
    return before | within | torch.eye(len(columns), dtype=torch.bool)
