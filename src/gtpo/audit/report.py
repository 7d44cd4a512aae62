"""The result of an audit: findings, the checks that were made, and figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """The model is trained on something that it did not sample, or not on everything that it sampled."""
    WARNING = "warning"
    """May be intended; check it."""
    INFO = "info"
    """Nothing is wrong; shows what retokenising would change."""


class Kind(StrEnum):
    """What was found."""

    ROUND_TRIP = "round_trip"
    """Decoding a turn's ids and encoding the text gives other ids (info)."""
    RETOKENISED = "retokenised"
    """The batch holds a turn decoded and encoded again, not the ids that were sampled."""
    NOT_SAMPLED = "not_sampled"
    """The batch holds other ids than those that were sampled (warning: only fewer)."""
    OBSERVATION_TRAINED = "observation_trained"
    """Tokens of an observation, or of the template around it, are trained on."""
    TURN_START = "turn_start"
    """The first tokens of a turn are not trained on."""
    TURN_HOLE = "turn_hole"
    """Tokens within a turn are not trained on."""
    TURN_END = "turn_end"
    """The last tokens of a turn, its end-of-turn token with them, are not trained on."""
    TURN_UNTRAINED = "turn_untrained"
    """A whole turn is not trained on, others of the row are (warning)."""
    NO_END_TOKEN = "no_end_token"
    """An observation follows a turn that has no end-of-turn token."""
    TURNS_UNCLEAR = "turns_unclear"
    """From here on turns and observations could not be distinguished (warning)."""
    MASK_SHIFTED = "mask_shifted"
    """The mask is the right one, shifted by a position or two."""
    MASK_VALUE = "mask_value"
    """The mask holds another value than 0 and 1."""
    MASK_LENGTH = "mask_length"
    """The mask is longer or shorter than the ids."""
    PADDING_TRAINED = "padding_trained"
    """Padding is trained on (warning: where the model may have sampled the padding token itself)."""
    ATTENTION_HOLE = "attention_hole"
    """Tokens before the end of the completion are hidden from the model by the attention mask."""
    LOGPROB_LENGTH = "logprob_length"
    """There are more or fewer log-probabilities than ids."""
    LOGPROB_INVALID = "logprob_invalid"
    """A log-probability of a trained token is NaN, infinite, or above 0."""
    LOGPROB_MISMATCH = "logprob_mismatch"
    """The model gives a trained token another log-probability than the batch has."""


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        kind: what was found.
        severity: how bad it is.
        row: row of the batch, from 0.
        start: first completion position that it is about, from 0.
        stop: one past the last position.
        message: one sentence, with the text in question.
    """

    kind: Kind
    severity: Severity
    row: int
    start: int
    stop: int
    message: str

    def __str__(self) -> str:
        place = f"row {self.row}, tokens {self.start}:{self.stop}"
        return f"{self.severity.value:7s} {place}: {self.kind.value}: {self.message}"


@dataclass(frozen=True)
class AuditReport:
    """The result of `gtpo.audit.audit`.

    Attributes:
        findings: in the order of rows and positions.
        checked: the checks that were made.
        skipped: what was not checked, and why.
        figures: counts; for each kind of log-probabilities that was compared with the model, under its name, the
            tokens compared, the largest and the mean absolute difference, and the largest importance ratio.
    """

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    skipped: tuple[str, ...]
    figures: Mapping[str, float]

    @property
    def ok(self) -> bool:
        """Whether there is no error. Skipped checks may hide errors: see `skipped`."""
        return not self.of(Severity.ERROR)

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity is severity)

    def render(self, *, most: int = 20) -> str:
        """The report as text: the worst findings first, at most `most` of each severity in full, counts of all."""
        lines = [f"Audit: {', '.join(self._tally()) or 'no findings'}"]
        for severity in Severity:
            found = self.of(severity)
            lines += [f"  {finding}" for finding in found[:most]]
            if len(found) > most:
                kinds = Counter(finding.kind.value for finding in found[most:])
                lines.append(f"  ... and more of {severity.value}: {', '.join(f'{k} {n}' for k, n in kinds.items())}")
        lines += [f"Checked: {check}" for check in self.checked]
        lines += [f"NOT checked: {reason}" for reason in self.skipped]
        lines += [f"{name}: {value:.6g}" for name, value in self.figures.items()]
        return "\n".join(lines)

    def _tally(self) -> list[str]:
        return [f"{len(found)} {severity.value}" for severity in Severity if (found := self.of(severity))]
