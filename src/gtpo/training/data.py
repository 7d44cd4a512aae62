"""Converts problems and traces to the data sets that TRL's trainers take."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from gtpo._jsonl import rows
from gtpo.errors import DataError
from gtpo.reward_functions import extras_of
from gtpo.rollout import Encoder, Prompts
from gtpo.tasks.problems import Problem, problem_of_row
from gtpo.tasks.row_forms import RowReader


def problem_dataset(problems: Sequence[Problem], prompts: Prompts) -> Dataset:
    """One row per problem: `prompt` (chat messages), `id`, `question`, `answer`, `domain` and `extras` (JSON)."""
    return Dataset.from_list(
        [
            {
                "prompt": prompts.messages(problem),
                **problem.fields,
                "extras": json.dumps(dict(problem.extras), default=str),
            }
            for problem in problems
        ]
    )


class RowProblems:
    """Reads the problems of a data set's rows: what a verifier needs of them, and what the model is asked.

    Rows are those of `problem_dataset`, those of a published data set (`gtpo.tasks.row_forms`), or any rows with a
    column `prompt`, whose `answer` is text, a number or a list of aliases.

    Args:
        verifies: whether a verifier scores, so that each row must have an answer. Otherwise rows may have any columns.
    """

    def __init__(self, *, verifies: bool) -> None:
        self._verifies, self._reader = verifies, RowReader()
        self.further: dict[str, None] = {}
        """Names of the problems' further fields, in the order of the first row that has them."""

    def problem(self, row: Mapping[str, Any], place: int = 0) -> Problem:
        """The problem of a row; `place` names it if it has no `id`.

        Raises:
            DataError: a verifier scores, and the answer is missing or can't be read.
        """
        ours = {"id": place, **self._ours(row)}
        return problem_of_row(ours, "train_dataset", place + 1, ("answer",) if self._verifies else ())

    def _ours(self, row: Mapping[str, Any]) -> dict[str, Any]:
        there = {name: value for name, value in row.items() if value is not None}
        if isinstance(there.get("extras"), str):
            return {**json.loads(there.pop("extras")), **_question_of(there)}
        if not self._verifies:
            answer = there.get("answer")
            named = {"id": str(there["id"])} if "id" in there else {}
            return {
                **named,
                "question": _question_of(there)["question"],
                "answer": answer if isinstance(answer, str) else "",
            }
        try:
            if "prompt" not in there or self._reader.knows(there):
                return self._reader.read(there) or {}
            return self._reader.read(_question_of(there)) or {}
        except DataError as fault:
            raise fault.at("train_dataset", 1) from fault

    def prompted(self, dataset: Any, prompts: Prompts) -> Any:
        """The data set with a column `prompt`, which TRL needs; its other columns are unchanged.

        Rows without a prompt get the prompt of a problem. So do the rows of a published data set if a verifier scores:
        their own prompts ask for the answer in another place than the one where the verifier looks.

        Args:
            dataset: a `Dataset` or `IterableDataset`.
            prompts: makes the prompts of problems.

        Raises:
            DataError: there is no row, or the first one can't be read.
        """
        first = next(iter(dataset), None)
        if first is None:
            raise DataError("has no rows", path="train_dataset")
        try:
            self.problem(first)
        except DataError as fault:
            raise DataError(
                f"{fault}; rename a column with train_dataset.rename_column, or give reward_funcs, which need no answer"
            ) from fault
        if isinstance(dataset, Dataset) and "extras" in dataset.column_names:
            for extras in dataset["extras"]:
                self.further |= dict.fromkeys(extras_of({"extras": extras}))
        if first.get("prompt") is not None and not (self._verifies and "reward_model" in first):
            return dataset
        options = {"new_fingerprint": uuid.uuid4().hex} if isinstance(dataset, Dataset) else {}
        return dataset.map(
            lambda row, place: {"prompt": prompts.messages(self.problem(row, place))}, with_indices=True, **options
        )


def _question_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its prompt replaced by the question alone."""
    prompt = row.get("prompt")
    question = row.get("question") or (prompt if isinstance(prompt, str) else prompt and prompt[-1]["content"])
    return {**{name: value for name, value in row.items() if name not in ("prompt", "problem")}, "question": question}


def load_traces(path: str | Path) -> list[list[dict[str, Any]]]:
    """Read conversations from JSON Lines: each line has a field `messages`, with roles system, user, assistant, tool.

    Raises:
        DataError: the file is missing or empty, a line is broken, or its messages are not a conversation; names the
            line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file; make traces with `gtpo make-traces` or `gtpo collect-traces`", path=path)
    traces = []
    for number, row in rows(path):
        if not _is_conversation(row.get("messages")):
            message = "must be a list of objects with 'role' and 'content'; fix or delete the line"
            raise DataError(message, path=path, line=number, field="messages")
        traces.append(row["messages"])
    if not traces:
        raise DataError("has no traces", path=path)
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
    """Encode traces like the rollouts that would have produced them; the loss covers the model's own tokens only.

    Args:
        traces: conversations.
        encoder: the encoder that rollouts use.
        max_length: maximum length in tokens; longer traces are left out entirely, since a truncated conversation would
            teach the model to stop in the middle.
        system_prompt: put before conversations that have none.

    Returns:
        A data set with `input_ids` and `labels` (-100 on prompt and observations), and the number of traces left out.

    Raises:
        DataError: no trace is left, or a trace is malformed; names its number.
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
        raise DataError(f"all {too_long} traces are longer than max_length {max_length} tokens; raise --max_length")
    return Dataset.from_list(examples), too_long
