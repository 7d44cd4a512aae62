"""From problems and traces to the data sets that the host's trainers take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from gtpo.errors import DataError
from gtpo.rollout import ChatEncoder
from gtpo.rollout.loop import messages_for
from gtpo.tasks.problems import Problem


def problem_dataset(problems: Sequence[Problem], system_prompt: str | None) -> Dataset:
    """Columns `prompt` (chat messages), `id`, `question`, `answer` and `extras` (JSON), one row a problem."""
    return Dataset.from_list(
        [
            {
                "prompt": messages_for(problem.question, system_prompt),
                "id": problem.id,
                "question": problem.question,
                "answer": problem.answer,
                "extras": json.dumps(dict(problem.extras)),
            }
            for problem in problems
        ]
    )


def load_traces(path: str | Path) -> list[list[dict[str, Any]]]:
    """Read conversations from JSON Lines: a field `messages` a line, with the roles system, user, assistant, tool.

    Raises:
        DataError: a missing or empty file, a broken line, or messages that are no conversation; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file; make traces with `gtpo traces`, or give another --traces", path=path)
    traces = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            messages = json.loads(line)["messages"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"not a JSON object with a field 'messages' ({error}); mend or drop the line", path=path, line=number
            ) from error
        if not _is_conversation(messages):
            raise DataError(
                "must be a list of objects with 'role' and 'content'", path=path, line=number, field="messages"
            )
        traces.append(messages)
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
    encoder: ChatEncoder,
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
    rows, too_long = [], 0
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
            rows.append({"input_ids": ids, "labels": [-100] * len(trajectory.prompt_ids) + labels})
    if not rows:
        raise DataError(f"all {too_long} traces are longer than max_length {max_length} tokens; raise it")
    return Dataset.from_list(rows), too_long
