"""Rows of verl's datasets: from gtpo's problems, and back. Does not need verl."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gtpo.reward_functions import columns_of
from gtpo.tasks.problems import Problem


def write_parquet(problems: Sequence[Problem], path: str | Path, data_source: str) -> None:
    """Write problems to a file for `data.train_files`.

    The conversation has no system prompt: the agent loop adds the one that its tools need.

    Args:
        problems: at least one.
        path: the file; its folder is created if missing.
        data_source: verl's name for the source of the problems, by which verl groups validation metrics.
    """
    rows = [
        {
            "data_source": data_source,
            "prompt": problem.prompt(None),
            "ability": problem.domain,
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {
                "index": index,
                "id": problem.id,
                "question": problem.question,
                "domain": problem.domain,
                "extras": json.dumps(dict(problem.extras)),
            },
        }
        for index, problem in enumerate(problems)
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path)


def problem_of(row: Mapping[str, Any]) -> Problem:
    """The problem of a row, whether gtpo wrote the row or not.

    Args:
        row: `raw_prompt` holds the chat messages, `reward_model.ground_truth` the answer. In `extra_info`, these are
            used if present: `id` or `index`, `question`, `domain`, and `extras` (JSON); its other fields are added to
            the extras.
    """
    messages = tuple(dict(message) for message in row["raw_prompt"])
    info = {str(name): _plain(value) for name, value in dict(row.get("extra_info") or {}).items()}
    index = info.pop("index", row.get("uid", ""))
    ours = json.loads(info.pop("extras", "{}"))
    return Problem(
        id=str(info.pop("id", index)),
        question=str(info.pop("question", None) or messages[-1]["content"]),
        answer=str(_plain(dict(row.get("reward_model") or {}).get("ground_truth", ""))),
        domain=str(info.pop("domain", "math")),
        extras={**info, **ours},
        messages=messages,
    )


def reward_columns(row: Mapping[str, Any], problem: Problem) -> dict[str, list[Any]]:
    """What reward functions get by name for one rollout: columns of verl's row, and those that gtpo's trainer gives.

    Args:
        row: as for `problem_of`; its columns `data_source`, `ability`, `reward_model` and `extra_info` are passed on.
        problem: the problem of the row; `id`, `question`, `answer`, `domain` and the entries of its extras are columns,
            too.
    """
    of_verl = {
        name: {str(key): _plain(value) for key, value in row[name].items()}
        if isinstance(row[name], Mapping)
        else _plain(row[name])
        for name in ("data_source", "ability", "reward_model", "extra_info")
        if row.get(name) is not None
    }
    return columns_of([{**of_verl, **problem.fields, "extras": dict(problem.extras)}])


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
