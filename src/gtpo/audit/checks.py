"""The checks of a row that need no model: its mask against its turns, and its ids against their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gtpo.audit.batch import AuditRow
from gtpo.audit.report import Finding, Kind, Severity
from gtpo.audit.turns import Layout, Span, decode, differing, reencode, runs_of

_SHIFTS = (1, -1, 2, -2)
_EXCERPT = 60


class RowChecks:
    """Collects the findings of one row.

    Args:
        number: number of the row.
        row: the row.
        layout: its turns and observations.
        trained: for each completion position, whether it is trained on.
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, number: int, row: AuditRow, layout: Layout, trained: Sequence[bool], tokenizer: Any):
        self.number, self.row, self.layout, self.trained, self.tokenizer = number, row, layout, trained, tokenizer
        self.findings: list[Finding] = []

    def found(self, kind: Kind, span: Span, message: str, severity: Severity = Severity.ERROR) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, severity, self.number, *span, message))

    def excerpt(self, start: int, stop: int) -> str:
        """The text of a span in quotes, without its middle if it is long."""
        return _quoted(decode(self.tokenizer, self.row.completion_ids[start:stop]))

    def mask(self, end_ids: frozenset[int]) -> None:
        """Check padding, turns and observations against the mask, for rows with any trained token."""
        shift = self._shift()
        if shift:
            return self.found(
                Kind.MASK_SHIFTED,
                (0, self.row.length),
                f"the mask is shifted by {shift:+d} against the turns; shift it together with the ids, once",
            )
        self._padding()
        for start, stop in self.layout.observations or ():
            for span in runs_of(self.trained, start, stop):
                self.found(
                    Kind.OBSERVATION_TRAINED, span, f"trains on {self.excerpt(*span)}, which the model did not sample"
                )
        for turn, span in enumerate(self.layout.turns):
            self._turn(turn, span, end_ids)
        for turn in self.layout.unended:
            stop = self.layout.turns[turn][1]
            self.found(
                Kind.NO_END_TOKEN,
                (stop - 1, stop + 1),
                f"an observation follows turn {turn}, {self.excerpt(*self.layout.turns[turn])}, which has no "
                "end-of-turn token",
            )
        if self.layout.unclear:
            self.found(
                Kind.TURNS_UNCLEAR,
                self.layout.unclear,
                f"no place was found where the model continues after {self.excerpt(*self.layout.unclear)}: these "
                "tokens were not checked; either the history was tokenised again, or the batch was made with another "
                "template, template_kwargs or end_ids than the encoder has",
                Severity.WARNING,
            )

    def attention(self) -> None:
        """Check for holes in the attention mask."""
        if self.row.attended is None:
            return
        hidden = [not seen for seen in self.row.attended]
        for span in runs_of(hidden, 0, self.row.length):
            self.found(
                Kind.ATTENTION_HOLE,
                span,
                f"the attention mask hides {self.excerpt(*span)} from the model, which saw it when it sampled; use "
                "separate masks for loss and attention",
            )

    def round_trip(self) -> None:
        """Find turns whose text encodes to other ids, and turns that are known to be encoded text."""
        for turn in self.row.inexact_turns:
            self.found(
                Kind.RETOKENISED,
                self.layout.turns[turn],
                f"turn {turn} is a server's text that was tokenised here, not what was sampled: do not train on it",
            )
        for turn, (start, stop) in enumerate(self.layout.turns):
            ids = self.row.completion_ids[start:stop]
            again = reencode(self.tokenizer, ids)
            if list(ids) != again:
                self._differs(Kind.ROUND_TRIP, turn, ids, again, "would be retokenised from {a} to {b}", Severity.INFO)

    def sampled(self, turns: Sequence[Sequence[int]]) -> None:
        """Check the row's turns against the sampled ids, turn by turn."""
        if len(turns) != len(self.layout.turns):
            return self.found(
                Kind.NOT_SAMPLED,
                (0, self.row.length),
                f"the row has {len(self.layout.turns)} turns, {len(turns)} were sampled",
            )
        for turn, ((start, stop), sampled) in enumerate(zip(self.layout.turns, turns, strict=True)):
            ids, last = list(self.row.completion_ids[start:stop]), turn == len(turns) - 1
            if ids == list(sampled):
                continue
            if ids == reencode(self.tokenizer, sampled):
                self._differs(Kind.RETOKENISED, turn, ids, sampled, "was retokenised: it holds {a}, sampled was {b}")
            elif last and ids == list(sampled[: len(ids)]):
                self.found(
                    Kind.NOT_SAMPLED,
                    (start, stop),
                    f"turn {turn} was cut to the first {len(ids)} of its {len(sampled)} sampled tokens",
                    Severity.WARNING,
                )
            else:
                self._differs(Kind.NOT_SAMPLED, turn, ids, sampled, "is not what was sampled: it holds {a}, not {b}")

    def _shift(self) -> int:
        """By how many positions the mask is shifted against the turns; 0 if it is not."""
        if self.layout.observations is None or self.layout.unclear:
            return 0
        width = len(self.row.completion_ids)
        own = [False] * width
        for start, stop in self.layout.turns:
            own[start:stop] = [True] * (stop - start)
        pairs = set(zip(own, self.trained, strict=True))
        if not pairs >= {(True, False), (False, True)}:
            return 0  # only too much or only too little: no shift
        for shift in _SHIFTS:
            inside = range(max(0, shift), width + min(0, shift))
            if all(self.trained[t] == own[t - shift] for t in inside):
                return shift
        return 0

    def _padding(self) -> None:
        start, stop = self.layout.padding
        border = start if self.layout.padding_certain else min(self.row.length, stop)
        for span in runs_of(self.trained, start, border):
            self.found(
                Kind.PADDING_TRAINED,
                span,
                f"trains on {span[1] - span[0]} padding tokens at the end of a turn that did not end: right only if "
                "the model sampled them",
                Severity.WARNING,
            )
        for span in runs_of(self.trained, border, stop):
            self.found(Kind.PADDING_TRAINED, span, f"trains on {span[1] - span[0]} tokens of padding")

    def _turn(self, turn: int, span: Span, end_ids: frozenset[int]) -> None:
        start, stop = span
        if self.layout.observations is None:  # turns are runs of the mask: only what follows one can tell
            after = self.row.completion_ids[stop : min(stop + 1, self.layout.padding[0])]
            if after and after[0] in end_ids and self.row.completion_ids[stop - 1] not in end_ids:
                self.found(
                    Kind.TURN_END,
                    (stop, stop + 1),
                    f"does not train on the end-of-turn token {self.excerpt(stop, stop + 1)}",
                )
            return
        holes = runs_of([not trained for trained in self.trained], start, stop)
        for hole in holes:
            text = self.excerpt(*hole)
            if hole == span:
                message = f"trains on no token of turn {turn}, {text}; correct only if it was excluded on purpose"
                self.found(Kind.TURN_UNTRAINED, hole, message, Severity.WARNING)
            elif hole[0] == start:
                self.found(Kind.TURN_START, hole, f"does not train on {text}, the beginning of turn {turn}")
            elif hole[1] == stop:
                ending = "its end-of-turn token" if self.row.completion_ids[stop - 1] in end_ids else "its last tokens"
                self.found(Kind.TURN_END, hole, f"does not train on {text}: turn {turn} loses {ending}")
            else:
                self.found(Kind.TURN_HOLE, hole, f"does not train on {text} within turn {turn}")

    def _differs(
        self,
        kind: Kind,
        turn: int,
        ids: Sequence[int],
        others: Sequence[int],
        what: str,
        severity: Severity = Severity.ERROR,
    ) -> None:
        """Add a finding about where a turn's ids differ from others."""
        offset = self.layout.turns[turn][0]
        (start, stop), (other_start, other_stop) = differing(ids, others)
        said = what.format(
            a=self._tokens(ids[start:stop]),
            b=self._tokens(others[other_start:other_stop]),
        )
        self.found(kind, (offset + start, offset + max(stop, start + 1)), f"turn {turn} {said}", severity)

    def _tokens(self, ids: Sequence[int]) -> str:
        """The ids as the texts of their tokens."""
        shown = "|".join(decode(self.tokenizer, [i]) for i in ids[:12])
        return f"{len(ids)} token{'s' * (len(ids) != 1)} {_quoted(shown)}" if ids else "no token"


def mask_form(number: int, row: AuditRow) -> list[Finding]:
    """Findings about the length and values of the mask."""
    width = len(row.completion_ids)
    if len(row.mask) != width:
        span = sorted((width, len(row.mask)))
        message = f"the mask has {len(row.mask)} entries for {width} ids; nothing else of this row was checked"
        return [Finding(Kind.MASK_LENGTH, Severity.ERROR, number, span[0], span[1], message)]
    odd = [value not in (0, 1) for value in row.mask]
    return [
        Finding(
            Kind.MASK_VALUE,
            Severity.ERROR,
            number,
            *span,
            f"the mask holds {', '.join(f'{v:g}' for v in sorted(set(row.mask[slice(*span)]))[:5])}: must be 0 and 1 "
            "only",
        )
        for span in runs_of(odd, 0, width)
    ]


def _quoted(text: str) -> str:
    if len(text) > _EXCERPT:
        text = f"{text[: _EXCERPT // 2]} ... {text[-_EXCERPT // 2 :]}"
    return repr(text)
