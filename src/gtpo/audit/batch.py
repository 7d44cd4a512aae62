"""Batches to audit, from three sources in one form: one row per rollout, ids and masks as they would be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gtpo.errors import DataError
from gtpo.types import Trajectory


@dataclass(frozen=True)
class AuditRow:
    """One rollout.

    Attributes:
        prompt_ids: ids of the prompt, without padding.
        completion_ids: ids after the prompt, including padding after them if there is any.
        mask: the factor of each token's loss, one value per completion position.
        attended: whether each completion position is attended to, i.e. is not padding; None: all are.
        turn_ids: the 0-based turn of each completion position, -1 for observations; None: unknown.
        logprobs: by name, one log-probability per completion position.
        inexact_turns: turns that are known to be retokenised text (`Turn.token_exact`).
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    mask: tuple[float, ...]
    attended: tuple[bool, ...] | None = None
    turn_ids: tuple[int, ...] | None = None
    logprobs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    inexact_turns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("attended", "turn_ids"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.completion_ids):
                raise DataError(
                    f"{len(value)} entries for {len(self.completion_ids)} completion ids; give one each", field=name
                )
        for name in ("prompt_ids", "completion_ids"):
            if any(i < 0 for i in getattr(self, name)):
                raise DataError(
                    "holds a negative id; give token ids (labels with -100 can't be audited), and mark padding in "
                    "the mask",
                    field=name,
                )

    @property
    def length(self) -> int:
        """Number of completion positions that are not padding."""
        if self.attended is None:
            return len(self.completion_ids)
        return max((t + 1 for t, seen in enumerate(self.attended) if seen), default=0)


@dataclass(frozen=True)
class AuditBatch:
    """A batch to audit: one row per rollout."""

    rows: tuple[AuditRow, ...]

    @classmethod
    def from_trajectories(cls, trajectories: Sequence[Trajectory]) -> AuditBatch:
        """From gtpo rollouts: turns are known, the mask is `Trajectory.mask`, log-probabilities are `logprobs`."""
        rows = []
        for trajectory in trajectories:
            logprobs = trajectory.logprobs
            rows.append(
                AuditRow(
                    trajectory.prompt_ids,
                    tuple(trajectory.completion_ids),
                    tuple(trajectory.mask),
                    turn_ids=tuple(trajectory.turn_ids),
                    logprobs={} if logprobs is None else {"logprobs": tuple(logprobs)},
                    inexact_turns=tuple(j for j, turn in enumerate(trajectory.turns) if not turn.token_exact),
                )
            )
        return cls(tuple(rows))

    @classmethod
    def from_lists(
        cls,
        prompt_ids: Sequence[Iterable[int]],
        completion_ids: Sequence[Iterable[int]],
        mask: Sequence[Iterable[float]],
        logprobs: Sequence[Iterable[float | None]] | None = None,
    ) -> AuditBatch:
        """From rows without padding, e.g. what a `rollout_func` for TRL returns (`mask` is its `env_mask`).

        A mask or log-probabilities whose length differs from that of the ids become findings.

        Raises:
            DataError: the fields have different numbers of rows.
        """
        for name, rows in (("prompt_ids", prompt_ids), ("mask", mask), ("logprobs", logprobs)):
            if rows is not None and len(rows) != len(completion_ids):
                raise DataError(f"{len(rows)} rows for {len(completion_ids)} completions; give one each", field=name)
        made = []
        for i, completion in enumerate(completion_ids):
            own = {} if logprobs is None else {"logprobs": _logprobs(logprobs[i])}
            made.append(AuditRow(tuple(prompt_ids[i]), tuple(completion), tuple(mask[i]), logprobs=own))
        return cls(tuple(made))

    @classmethod
    def from_trl(cls, output: Mapping[str, Any]) -> AuditBatch:
        """From what TRL's `GRPOTrainer._generate_and_score_completions` returns (TRL 1.10 to 1.16).

        Uses `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask`, and if present `tool_mask`,
        `sampling_per_token_logps` and `old_per_token_logps`, each (B, T) as tensor, array or lists. The mask is
        `completion_mask * tool_mask`, as in TRL's loss; the attention mask is `completion_mask`.

        Raises:
            DataError: a field is missing or has another shape.
        """
        remedy = "pass the dict that GRPOTrainer._generate_and_score_completions returns"
        prompts = _matrix(output, "prompt_ids", remedy)
        prompt_mask = _matrix(output, "prompt_mask", remedy, like=prompts)
        completions = _matrix(output, "completion_ids", remedy, rows=len(prompts))
        completion_mask = _matrix(output, "completion_mask", remedy, like=completions)
        tool_mask = _optional(output, "tool_mask", remedy, completions)
        logprobs = {
            name: values
            for name in ("sampling_per_token_logps", "old_per_token_logps")
            if (values := _optional(output, name, remedy, completions)) is not None
        }
        masks = completion_mask
        if tool_mask is not None:
            masks = [[a * b for a, b in zip(*pair, strict=True)] for pair in zip(masks, tool_mask, strict=True)]
        return cls(_rows(prompts, prompt_mask, completions, completion_mask, masks, logprobs))

    @classmethod
    def from_verl(cls, batch: Any) -> AuditBatch:
        """From a verl `DataProto`, its `batch`, or a dict with the same keys (verl 0.9).

        Uses `prompts`, `responses`, `response_mask`, `attention_mask` over both, and if present `rollout_log_probs`
        and `old_log_probs`, padded: prompts on the left, responses on the right.

        Raises:
            DataError: a field is missing or has another shape.
        """
        fields = getattr(batch, "batch", batch)
        remedy = "pass the DataProto that the agent loop or the trainer's fit() holds"
        prompts = _matrix(fields, "prompts", remedy)
        responses = _matrix(fields, "responses", remedy, rows=len(prompts))
        mask_remedy = "set it first: batch.batch['response_mask'] = compute_response_mask(batch)"
        masks = _matrix(fields, "response_mask", mask_remedy, like=responses)
        attention = _matrix(fields, "attention_mask", remedy, rows=len(prompts))
        split = len(prompts[0]) if prompts else 0
        width = split + (len(responses[0]) if responses else 0)
        if attention and len(attention[0]) != width:
            raise DataError(
                f"has {len(attention[0])} columns, prompts and responses have {width} together; {remedy}",
                field="attention_mask",
            )
        logprobs = {
            name: values
            for name in ("rollout_log_probs", "old_log_probs")
            if (values := _optional(fields, name, remedy, responses)) is not None
        }
        prompt_mask = [row[:split] for row in attention]
        attended = [row[split:] for row in attention]
        return cls(_rows(prompts, prompt_mask, responses, attended, masks, logprobs))


_Matrix = list[list[Any]]


def _rows(
    prompts: _Matrix,
    prompt_masks: _Matrix,
    completions: _Matrix,
    attended: _Matrix,
    masks: _Matrix,
    logprobs: Mapping[str, _Matrix],
) -> tuple[AuditRow, ...]:
    return tuple(
        AuditRow(
            tuple(int(i) for i, keep in zip(prompt, prompt_mask, strict=True) if keep),
            tuple(map(int, completion)),
            tuple(mask),
            tuple(map(bool, seen)),
            logprobs={name: _logprobs(values[number]) for name, values in logprobs.items()},
        )
        for number, (prompt, prompt_mask, completion, seen, mask) in enumerate(
            zip(prompts, prompt_masks, completions, attended, masks, strict=True)
        )
    )


def _logprobs(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(float("nan") if value is None else float(value) for value in values)


def _optional(batch: Any, name: str, remedy: str, like: _Matrix) -> _Matrix | None:
    return _matrix(batch, name, remedy, like=like) if name in batch.keys() else None  # noqa: SIM118, a TensorDict


def _matrix(batch: Any, name: str, remedy: str, *, like: _Matrix | None = None, rows: int | None = None) -> _Matrix:
    """A field as lists of equal length, checked for the shape of `like`, or for `rows` rows, if these are given."""
    if not hasattr(batch, "keys"):
        raise DataError(f"a batch must be a mapping, not {type(batch).__name__}; {remedy}", field=name)
    if name not in batch.keys():  # noqa: SIM118, a TensorDict has no other membership test
        raise DataError(f"is missing; {remedy}", field=name)
    value = batch[name]
    if getattr(value, "is_nested", False):
        raise DataError("is a nested tensor; pad it first: value.to_padded_tensor(0)", field=name)
    value = value.tolist() if hasattr(value, "tolist") else value
    matrix = [row.tolist() if hasattr(row, "tolist") else row for row in value] if isinstance(value, Sequence) else None
    if matrix is None or not all(isinstance(row, Sequence) for row in matrix):
        raise DataError(f"must have two axes, rollouts and tokens; {remedy}", field=name)
    widths = {len(row) for row in matrix}
    if len(widths) > 1:
        raise DataError(
            f"has rows of {min(widths)} to {max(widths)} entries; pad them to one width, or use AuditBatch.from_lists "
            "for rows without padding",
            field=name,
        )
    rows = len(like) if like is not None else rows
    if rows is not None and len(matrix) != rows:
        raise DataError(f"has {len(matrix)} rows, the batch has {rows}; {remedy}", field=name)
    if like and len(matrix[0]) != len(like[0]):
        raise DataError(f"has {len(matrix[0])} columns, the ids have {len(like[0])}; {remedy}", field=name)
    return [list(row) for row in matrix]
