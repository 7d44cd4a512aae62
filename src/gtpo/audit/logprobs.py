"""Checks of recorded log-probabilities: whether the values are possible, and whether a model reproduces them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gtpo.audit.batch import AuditRow
from gtpo.audit.report import Finding, Kind, Severity
from gtpo.audit.turns import decode, runs_of
from gtpo.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 256
_ROUNDING = 1e-6
"""A log-probability may exceed 0 by this much because of rounding in float32."""

TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "float16": 0.125, "bfloat16": 1.0}
"""Largest difference of a token's log-probability that passes, times the temperature, by the dtype of the weights.

Sampling with a cache and a single pass over the whole rollout sum in a different order. In float32 that makes a
difference of about 3e-5; 1e-3 corresponds to an importance ratio off by 0.1 %. A bfloat16 logit between 16 and 32 has a
resolution of 0.125, and the layers below are as coarse: of 1,300 tokens that SmolLM2-135M sampled on a CPU, one
differed by 0.5 (mean 0.04). So 1.0 distinguishes other tokens, weights or temperatures from rounding, but no more than
that. float16 has steps an eighth as wide.
"""


def check_values(number: int, row: AuditRow, trained: Sequence[bool]) -> tuple[list[Finding], set[str]]:
    """Findings about lengths and values, and the names of the log-probabilities that can be compared further."""
    findings, usable = [], set()
    width = len(row.completion_ids)
    for name, values in row.logprobs.items():
        if len(values) != width:
            span = sorted((width, len(values)))
            message = f"{name} has {len(values)} entries for {width} ids"
            findings.append(Finding(Kind.LOGPROB_LENGTH, Severity.ERROR, number, span[0], span[1], message))
            continue
        usable.add(name)
        odd = [keep and not valid(value) for keep, value in zip(trained, values, strict=True)]
        for start, stop in runs_of(odd, 0, row.length):
            message = f"{name} is {values[start]:g} at a token that is trained on: no log-probability"
            findings.append(Finding(Kind.LOGPROB_INVALID, Severity.ERROR, number, start, stop, message))
    return findings, usable


def valid(value: float) -> bool:
    """Whether a number can be the log-probability of a sampled token."""
    return math.isfinite(value) and value <= _ROUNDING


@dataclass
class Differences:
    """The differences of one kind of log-probabilities over a batch: the model's minus the recorded ones."""

    name: str
    values: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Named figures for the report."""
        figures = {f"{self.name}/compared": float(len(self.values))}
        if self.values:
            sizes = [abs(value) for value in self.values]
            figures |= {
                f"{self.name}/max_abs_diff": max(sizes),
                f"{self.name}/mean_abs_diff": math.fsum(sizes) / len(sizes),
                f"{self.name}/max_ratio": _exp(max(self.values)),
            }
        return figures


class Replay:
    """Computes log-probabilities with a model and compares recorded ones with them.

    Args:
        model: a causal language model, PEFT included, in the state in which it sampled.
        tokenizer: used for excerpts.
        temperature: sampling temperature.
        tolerance: largest difference that passes; None: that of `TOLERANCES` over the temperature.
    """

    def __init__(self, model: Any, tokenizer: Any, temperature: float, tolerance: float | None):
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        usual = TOLERANCES.get(dtype, TOLERANCES["bfloat16"]) / temperature
        self.tolerance = usual if tolerance is None else tolerance
        self.differences: dict[str, Differences] = {}

    def check(self, number: int, row: AuditRow, trained: Sequence[bool], names: set[str]) -> list[Finding]:
        """Findings about recorded values that the model does not reproduce at trained tokens.

        Raises:
            DataError: the prompt is empty, or the model has no embedding for an id.
        """
        if not names or not any(trained[: row.length]):
            return []
        if not row.prompt_ids:
            raise DataError(
                f"row {number} has none, so the first token's log-probability can't be computed; give the prompt, or "
                "leave the model out",
                field="prompt_ids",
            )
        own, plain = self._logprobs(row, number)
        findings: list[Finding] = []
        for name in sorted(names):
            recorded = row.logprobs[name]
            compared = [keep and valid(value) for keep, value in zip(trained[: row.length], recorded, strict=False)]
            diffs = [new - old if on else 0.0 for on, new, old in zip(compared, own, recorded, strict=False)]
            collected = self.differences.setdefault(name, Differences(name))
            collected.values += [diff for diff, on in zip(diffs, compared, strict=True) if on]
            off = [on and abs(diff) > self.tolerance for on, diff in zip(compared, diffs, strict=True)]
            hint = ""
            if any(off) and self.temperature != 1:
                fits = (abs(plain[t] - recorded[t]) <= self.tolerance for t, on in enumerate(compared) if on)
                hint = "; all values of the row fit a temperature of 1" if all(fits) else ""
            for start, stop in runs_of(off, 0, row.length):
                worst = max(range(start, stop), key=lambda t, diffs=diffs: abs(diffs[t]))  # type: ignore[misc]
                findings.append(
                    Finding(
                        Kind.LOGPROB_MISMATCH,
                        Severity.ERROR,
                        number,
                        start,
                        stop,
                        f"{name} is {recorded[worst]:.4f} at {decode(self.tokenizer, [row.completion_ids[worst]])!r}, "
                        f"the model gives {own[worst]:.4f} (ratio {_exp(diffs[worst]):.4g}){hint}",
                    )
                )
        return findings

    def _logprobs(self, row: AuditRow, number: int) -> tuple[list[float], list[float]]:
        """Log-probabilities of the completion at the sampling temperature, and at 1."""
        import torch

        ids = [*row.prompt_ids, *row.completion_ids[: row.length]]
        known = self.model.get_input_embeddings().weight.shape[0]
        if max(ids) >= known:
            raise DataError(
                f"row {number} holds the id {max(ids)}, the model knows {known}; give the model that sampled",
                field="completion_ids",
            )
        core = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        keep = {}
        if "logits_to_keep" in inspect.signature(core.forward).parameters:
            keep["logits_to_keep"] = row.length + 1
        with torch.no_grad(), _evaluating(self.model):
            ids_1_T = torch.tensor([ids], device=next(self.model.parameters()).device)
            logits_T_V = self.model(input_ids=ids_1_T, use_cache=False, **keep).logits[0, -row.length - 1 : -1]
            chosen_T = ids_1_T[0, -row.length :]
            return _gather(logits_T_V, chosen_T, self.temperature), _gather(logits_T_V, chosen_T, 1.0)


def _gather(logits_T_V: Tensor, chosen_T: Tensor, temperature: float) -> list[float]:
    logprobs: list[float] = []
    for logits_C_V, chosen_C in zip(logits_T_V.split(_CHUNK), chosen_T.split(_CHUNK), strict=True):
        scores_C_V = logits_C_V.float() / temperature
        chosen = scores_C_V.gather(-1, chosen_C.unsqueeze(-1)).squeeze(-1) - scores_C_V.logsumexp(-1)
        logprobs += chosen.tolist()
    return logprobs


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
