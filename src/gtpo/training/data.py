"""From problems and traces to the data sets that TRL's trainers take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from gtpo._jsonl import rows
from gtpo.errors import DataError
from gtpo.rollout import Encoder, Prompts
from gtpo.tasks.problems import Problem


def problem_dataset(problems: Sequence[Problem], prompts: Prompts) -> Dataset:
    """One row per problem: `prompt` (chat messages), `id`, `question`, `answer`, `domain` and `extras` (JSON)."""
    return Dataset.from_list(
        [
            {
                "prompt": prompts.messages(problem),
                "id": problem.id,
                "question": problem.question,
                "answer": problem.answer,
                "domain": problem.domain,
                "extras": json.dumps(dict(problem.extras), default=str),
            }
            for problem in problems
        ]
    )


def load_traces(path: str | Path) -> list[list[dict[str, Any]]]:
    """Read conversations from JSON Lines: a field `messages` per line, with the roles system, user, assistant, tool.

    Raises:
        DataError: a missing or empty file, a broken line, or messages that are no conversation; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file; make traces with `gtpo make-traces` or `gtpo collect-traces`", path=path)
    traces = []
    for number, row in rows(path):
        if not _is_conversation(row.get("messages")):
            message = "must be a list of objects with 'role' and 'content'; mend or drop the line"
            raise DataError(message, path=path, line=number, field="messages")
        traces.append(row["messages"])
    if not traces:
        raise DataError("holds no trace", path=path)
    return traces


def _is_conversation(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in messages)
    )


def trace_dataset(
    traces: Iterable[Sequence[Mapping[str, Any]]],
    encoder: Encoder,
    *,
    max_length: int,
    system_prompt: str | None = None,
) -> tuple[Dataset, int]:
    """Encode traces as the rollouts that would have produced them; loss on the model's own tokens only.

    Args:
        traces: conversations.
        encoder: the same as the rollouts'.
        max_length: longer traces are left out whole: half a conversation teaches to stop in the middle.
        system_prompt: put before conversations that have none.

    Returns:
        A data set with `input_ids` and `labels` (-100 on prompt and observations), and how many were left out.

    Raises:
        DataError: no trace is left, or one is malformed; names its number.
    """
    examples, too_long = [], 0
    for number, messages in enumerate(traces, start=1):
        if system_prompt and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": system_prompt}, *messages]
        try:
            trajectory = encoder.trace(messages)
        except DataError as error:
            raise DataError(f"trace {number}: {error}") from error
        completion = trajectory.completion_ids
        labels = [i if keep else -100 for i, keep in zip(completion, trajectory.mask, strict=True)]
        ids = [*trajectory.prompt_ids, *completion]
        if len(ids) > max_length:
            too_long += 1
        else:
            examples.append({"input_ids": ids, "labels": [-100] * len(trajectory.prompt_ids) + labels})
    if not examples:
        raise DataError(f"all {too_long} traces are longer than max_length {max_length} tokens; raise it")
    return Dataset.from_list(examples), too_long
