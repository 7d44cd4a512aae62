"""Token exactness as a tool: does a batch train on what the model sampled, on all of it, and on nothing else?

    from gtpo.audit import AuditBatch, audit
    print(audit(AuditBatch.from_trl(output), tokenizer=tokenizer, encoder=encoder, model=model).render())

Takes our trajectories, what TRL's trainer computes, or a verl batch; imports neither TRL nor verl, and torch only to
recompute log-probabilities. `docs/audit.md` says how to read the report. One thing can't be seen from a batch alone:
ids that were retokenised to the encoding of their text look like sampled ones; give `sampled_ids` to find them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gtpo.audit.batch import AuditBatch, AuditRow
from gtpo.audit.checks import RowChecks, mask_form
from gtpo.audit.logprobs import TOLERANCES, Replay, check_values
from gtpo.audit.report import AuditReport, Finding, Kind, Severity
from gtpo.audit.turns import Frame, Layout, derived_layout, known_layout, mask_layout
from gtpo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gtpo.rollout.chat_encoder import ChatEncoder

__all__ = ["TOLERANCES", "AuditBatch", "AuditReport", "AuditRow", "Finding", "Kind", "Severity", "audit"]


def audit(
    batch: AuditBatch,
    *,
    tokenizer: Any,
    encoder: ChatEncoder | None = None,
    model: Any = None,
    temperature: float = 1.0,
    tolerance: float | None = None,
    sampled_ids: Sequence[Sequence[Sequence[int]]] | None = None,
) -> AuditReport:
    """Check that a batch trains on what was sampled and on nothing else.

    Args:
        batch: the batch to audit.
        tokenizer: the tokenizer that the batch was made with.
        encoder: the chat template; distinguishes turns from observations if the batch does not. Without it, turns are
            inferred from the mask, and whether observations are trained on is not checked.
        model: recomputes the log-probabilities of trained tokens, row by row without padding, in evaluation mode.
            Its weights must be those that the recorded values belong to.
        temperature: sampling temperature; log-probabilities are log-softmax(logits / temperature). 1 for greedy
            rollouts.
        tolerance: largest absolute difference of a log-probability that passes; None: `TOLERANCES` by the dtype of
            the model's weights, over the temperature.
        sampled_ids: for each row and each of its turns, the ids that the engine returned.

    Returns:
        The report. It lists everything that was not checked: see `AuditReport.skipped`.

    Raises:
        ConfigError: the temperature or tolerance is not positive.
        DataError: `sampled_ids` does not match the rows; or, with a model, a prompt is empty or ids are unknown.
    """
    for name, value in (("temperature", temperature), ("tolerance", tolerance)):
        if value is not None and not value > 0:
            raise ConfigError(
                f"{name} must be positive, got {value}; for greedily sampled rollouts, give temperature 1"
            )
    if sampled_ids is not None and len(sampled_ids) != len(batch.rows):
        raise DataError(
            f"has {len(sampled_ids)} rows, the batch has {len(batch.rows)}; give one each", field="sampled_ids"
        )
    replay = Replay(model, tokenizer, temperature, tolerance) if model is not None else None
    auditor = _Auditor(tokenizer, encoder, replay)
    for number, row in enumerate(batch.rows):
        auditor.row(number, row, sampled_ids[number] if sampled_ids is not None else None)
    return auditor.report(batch, sampled_ids is not None)


class _Auditor:
    """Goes through the rows of one batch."""

    def __init__(self, tokenizer: Any, encoder: ChatEncoder | None, replay: Replay | None):
        self.tokenizer, self.encoder, self.replay = tokenizer, encoder, replay
        self.frame = Frame.of(encoder) if encoder else None
        ends = encoder.end_ids if encoder else {tokenizer.eos_token_id} - {None}
        self.end_ids: frozenset[int] = frozenset(ends)
        self.findings: list[Finding] = []
        self.turns = self.trained = 0
        self.untrained_rows: list[int] = []
        self.from_mask: list[int] = []
        self.without_logprobs: list[int] = []
        self.unreadable: list[int] = []

    def row(self, number: int, row: AuditRow, sampled: Sequence[Sequence[int]] | None) -> None:
        """Run every check that is possible for a row."""
        findings = mask_form(number, row)
        self.findings += findings
        if any(finding.kind is Kind.MASK_LENGTH for finding in findings):
            self.unreadable.append(number)
            return
        trained = [bool(value) for value in row.mask]
        self.trained += sum(trained)
        if not any(trained):
            self.untrained_rows.append(number)
            return
        layout = self._layout(number, row, trained)
        self.turns += len(layout.turns)
        checks = RowChecks(number, row, layout, trained, self.tokenizer)
        checks.mask(self.end_ids)
        checks.attention()
        checks.round_trip()
        if sampled is not None:
            checks.sampled(sampled)
        findings, usable = check_values(number, row, trained)
        checks.findings += findings
        if not row.logprobs:
            self.without_logprobs.append(number)
        if self.replay is not None:
            checks.findings += self.replay.check(number, row, trained, usable)
        self.findings += sorted(checks.findings, key=lambda finding: (finding.start, finding.stop))

    def _layout(self, number: int, row: AuditRow, trained: Sequence[bool]) -> Layout:
        if row.turn_ids is not None:
            return known_layout(row, self.end_ids)
        if self.frame is not None:
            return derived_layout(row, trained, self.frame, self.tokenizer.pad_token_id)
        self.from_mask.append(number)
        return mask_layout(row, trained, self.end_ids, self.tokenizer.pad_token_id)

    def report(self, batch: AuditBatch, sampled: bool) -> AuditReport:
        """The report of all rows."""
        figures: dict[str, float] = {
            "rows": len(batch.rows),
            "turns": self.turns,
            "completion_tokens": sum(row.length for row in batch.rows),
            "trained_tokens": self.trained,
            "round_trip_differences": sum(finding.kind is Kind.ROUND_TRIP for finding in self.findings),
        }
        if self.replay is not None:
            figures["tolerance"] = self.replay.tolerance
            for differences in self.replay.differences.values():
                figures |= differences.figures()
        checked, skipped = self._coverage(batch, sampled)
        return AuditReport(tuple(self.findings), checked, skipped, figures)

    def _coverage(self, batch: AuditBatch, sampled: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Which checks were made and which were not."""
        looked_at = len(batch.rows) - len(self.unreadable) - len(self.untrained_rows)
        checked = ["form of the mask, padding", "round trip of the turns' text"]
        skipped: list[str] = []
        if len(self.from_mask) < looked_at:
            checked.append("observations that are trained on, holes in turns, their first and last tokens")
        if self.from_mask:
            why = "no encoder was given" if self.encoder is None else "its template does not mark where a turn begins"
            skipped.append(
                "whether observations are trained on, and holes in turns: turns were inferred from the mask itself, "
                f"because {why} ({_rows(self.from_mask)})"
            )
        if sampled:
            checked.append("ids against those sampled")
        else:
            skipped.append("whether the ids are those that were sampled: no sampled_ids were given")
        if len(self.without_logprobs) < looked_at:
            checked.append("log-probabilities of trained tokens are finite and at most 0")
            if self.replay is not None:
                checked.append(f"log-probabilities are the model's within {self.replay.tolerance:g}")
            else:
                skipped.append("whether the model reproduces the log-probabilities: no model was given")
        if self.without_logprobs:
            skipped.append(f"log-probabilities: there are none ({_rows(self.without_logprobs)})")
        if self.untrained_rows:
            skipped.append(f"rows that train on no token ({_rows(self.untrained_rows)})")
        if self.unreadable:
            skipped.append(f"rows whose mask does not fit their ids ({_rows(self.unreadable)})")
        return tuple(checked), tuple(skipped)


def _rows(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return f"row{'s' * (len(numbers) > 1)} {shown}{', ...' * (len(numbers) > 10)}"
