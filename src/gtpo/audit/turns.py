"""Which completion positions are turns and which are observations: known, from the chat template, or from the mask.

A chat template puts a *frame* around observations: fixed ids after a turn's end-of-turn token, and fixed ids before
the place where the model continues. Both are learnt from a few observations of a `ChatEncoder`, as the ids that all of
them share, each encoded piece by piece (as this project does) and as one text (as other stacks do). An observation is
found regardless of its text, its number of results, and how its borders were tokenised.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gtpo.audit.batch import AuditRow

if TYPE_CHECKING:
    from gtpo.rollout.chat_encoder import ChatEncoder

Span = tuple[int, int]
"""First completion position, and one past the last."""

_PROBES = ("x", "7", "", " ", "\n", "]", "<", "é", "-1.5\n\n", "  a")


@dataclass(frozen=True)
class Frame:
    """The ids that the chat template puts around observations.

    Attributes:
        lead: ids before `opening` that are plain text (a line break), which some stacks omit.
        opening: ids with which an observation begins; empty if the template has no fixed ones.
        closing: ids with which the last observation before a turn ends: the model continues after them.
        end_ids: ids that end a turn.
    """

    lead: tuple[int, ...]
    opening: tuple[int, ...]
    closing: tuple[int, ...]
    end_ids: frozenset[int]

    @classmethod
    def of(cls, encoder: ChatEncoder) -> Frame | None:
        """The frame of an encoder's template; None if nothing marks where the model continues."""
        tokenizer = encoder.tokenizer
        encodings: list[list[int]] = []
        for probe in _PROBES:
            ids = encoder.observation_ids([probe])
            encodings += [ids, reencode(tokenizer, ids)]
        shared = _common_prefix(encodings)
        tail = _common_prefix([ids[::-1] for ids in encodings])[::-1]
        added = set(tokenizer.get_added_vocab().values())
        first = next((i for i, token in enumerate(shared) if token in added), None)
        lead, opening = (shared[:first], shared[first:]) if first is not None else ([], [])
        ends = [i for i, token in enumerate(tail[:-1]) if token in encoder.end_ids]
        marks = [i for i, token in enumerate(tail) if token in added]
        if not (ends or marks):
            return None
        return cls(tuple(lead), tuple(opening), tuple(tail[ends[-1] if ends else marks[0] :]), encoder.end_ids)


@dataclass(frozen=True)
class Layout:
    """The layout of one row: its turns, observations and padding.

    Attributes:
        turns: spans of turns in order.
        observations: spans of observations with their frame; None: unknown.
        padding: span of the padding at the end, including padding tokens that the attention mask does not exclude.
        padding_certain: whether none of these can have been sampled.
        unended: numbers of turns without an end-of-turn token that are followed by an observation.
        unclear: span in which turns and observations can't be distinguished.
    """

    turns: tuple[Span, ...]
    observations: tuple[Span, ...] | None
    padding: Span
    padding_certain: bool = True
    unended: tuple[int, ...] = ()
    unclear: Span | None = None


def known_layout(row: AuditRow, end_ids: Collection[int]) -> Layout:
    """The layout of a row whose `turn_ids` are known."""
    assert row.turn_ids is not None
    turns: list[Span] = []
    observations: list[Span] = []
    for turn, span in _groups(row.turn_ids[: row.length]):
        (observations if turn < 0 else turns).append(span)
    starts = {start for start, _ in observations}
    unended = [j for j, (_, stop) in enumerate(turns) if stop in starts and row.completion_ids[stop - 1] not in end_ids]
    padding = (row.length, len(row.completion_ids))
    return Layout(tuple(turns), tuple(observations), padding, unended=tuple(unended))


def mask_layout(row: AuditRow, trained: Sequence[bool], end_ids: Collection[int], pad_id: int | None) -> Layout:
    """Turns as runs of the mask, which is all that is known without a template."""
    stop, certain = _without_padding(row, end_ids, pad_id)
    runs = [span for value, span in _groups(trained[:stop]) if value]
    return Layout(tuple(runs), None, (stop, len(row.completion_ids)), certain)


def derived_layout(row: AuditRow, trained: Sequence[bool], frame: Frame, pad_id: int | None) -> Layout:
    """Turns and observations from the chat template; the mask decides only where the ids are ambiguous."""
    end, certain = _without_padding(row, frame.end_ids, pad_id)
    padding = (end, len(row.completion_ids))
    ids = row.completion_ids[:end]
    turns: list[Span] = []
    observations: list[Span] = []
    unended: list[int] = []
    start = 0
    while start < end:
        stop, ended = _turn_end(ids, trained, start, frame)
        if stop > start:
            turns.append((start, stop))
            if not ended and stop < end:
                unended.append(len(turns) - 1)
        if stop == end:
            break
        goes_on = _goes_on(ids, stop, frame, ended)
        rest = range(stop, _cut_closing(ids, frame, all(trained[stop:end])))
        if goes_on is None and any(trained[t] and ids[t] in frame.end_ids for t in rest):
            return Layout(
                tuple(turns), tuple(observations), padding, certain, unended=tuple(unended), unclear=(stop, end)
            )
        start = end if goes_on is None else goes_on
        observations.append((stop, start))
    return Layout(tuple(turns), tuple(observations), padding, certain, unended=tuple(unended))


def _turn_end(ids: Sequence[int], trained: Sequence[bool], start: int, frame: Frame) -> tuple[int, bool]:
    """Where the turn that begins at `start` ends, and whether with an end-of-turn token."""
    for t in range(start, len(ids)):
        if ids[t] in frame.end_ids:
            return t + 1, True
        if frame.opening and not trained[t] and _at(ids, t, frame.opening):
            lead = t - len(frame.lead)
            return (lead if lead >= start and _at(ids, lead, frame.lead) else t), False
    return len(ids), False


def _goes_on(ids: Sequence[int], start: int, frame: Frame, ended: bool) -> int | None:
    """Where the model continues after the observations that begin at `start`; None if it doesn't."""
    # the turn's own end token may be the closing's first: then there was no observation in between
    for t in range(start - 1 if ended else start, len(ids) - len(frame.closing) + 1):
        if _at(ids, t, frame.closing):
            stop = t + len(frame.closing)
            if not (frame.opening and (_at(ids, stop, frame.opening) or _at(ids, stop, (*frame.lead, *frame.opening)))):
                return stop
    return None


def _cut_closing(ids: Sequence[int], frame: Frame, single: bool) -> int:
    """Where a closing that the row's end cuts begins, or the row's end; a `single` id of it may be the turn's end."""
    lengths = range(min(len(frame.closing) - 1, len(ids)), 0 if single else 1, -1)
    return next((len(ids) - n for n in lengths if _at(ids, len(ids) - n, frame.closing[:n])), len(ids))


def _without_padding(row: AuditRow, end_ids: Collection[int], pad_id: int | None) -> tuple[int, bool]:
    """Where what was sampled or observed ends, and whether what follows can't have been sampled."""
    ids, stop = row.completion_ids, row.length
    while stop and ids[stop - 1] == pad_id:
        stop -= 1
    if stop < row.length and pad_id in end_ids and not (stop and ids[stop - 1] in end_ids):
        stop += 1  # the padding token is the end-of-turn token, and this is the turn's
    return stop, stop == row.length or (stop > 0 and ids[stop - 1] in end_ids)


def reencode(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """The encoding of the text of these ids."""
    encoded: list[int] = tokenizer.encode(decode(tokenizer, ids), add_special_tokens=False)
    return encoded


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The full text of these ids."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def runs_of(flags: Sequence[bool], start: int, stop: int) -> list[Span]:
    """Spans within [start, stop) in which a flag is set."""
    return [(start + a, start + b) for value, (a, b) in _groups(flags[start:stop]) if value]


def differing(ids: Sequence[int], others: Sequence[int]) -> tuple[Span, Span]:
    """The span in either of two sequences outside which they are equal."""
    head = len(_common_prefix([ids, others]))
    tail = len(_common_prefix([ids[head:][::-1], others[head:][::-1]]))
    return (head, len(ids) - tail), (head, len(others) - tail)


def _groups(values: Sequence[Any]) -> list[tuple[Any, Span]]:
    groups, start = [], 0
    for value, group in groupby(values):
        stop = start + sum(1 for _ in group)
        groups.append((value, (start, stop)))
        start = stop
    return groups


def _at(ids: Sequence[int], place: int, pattern: Sequence[int]) -> bool:
    return list(ids[place : place + len(pattern)]) == list(pattern)


def _common_prefix(sequences: Sequence[Sequence[int]]) -> list[int]:
    prefix = []
    for column in zip(*sequences, strict=False):
        if len(set(column)) > 1:
            break
        prefix.append(column[0])
    return prefix
