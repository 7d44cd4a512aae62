"""The data of the page: metrics and an index of all rollouts uncompressed, the rollouts themselves packed per step.

The browser unpacks a step when it is viewed, so a page opens as fast with a hundred steps as with one.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gtpo.report.alarms import alarms
from gtpo.run_directory import RunFiles

MAX_BYTES = 50_000_000
"""Maximum size of a page's packed rollouts; rollouts beyond it are left out, and the page says so."""
_WITH_TOKENS = 5
"""If the page would be too large, this many of the last steps keep their token details."""
_COLUMNS = (
    "step",
    "rollout",
    "group",
    "problem",
    "passed",
    "stop",
    "turns",
    "calls",
    "invalid",
    "tokens",
    "reward",
    "low",
    "high",
    "errors",
)
VOID_STEPS = 3


def run_document(files: RunFiles, *, max_bytes: int = MAX_BYTES, packed: bool = True) -> dict[str, Any]:
    """Everything of one run.

    Args:
        files: the run.
        max_bytes: maximum size of the packed rollouts.
        packed: False leaves the rollouts out; a served page requests them step by step.
    """
    steps = files.steps()
    index, packs, void_share = _index_and_packs(files, steps, packed)
    left_out = {"steps": 0, "token_details_of_steps": 0}
    if sum(map(len, packs.values())) > max_bytes:
        packs, left_out = _smaller(files, packs, max_bytes)
    metrics, settings = files.metrics(), files.settings()
    return {
        "name": files.name,
        "stamp": files.stamp(),
        "settings": settings,
        "metrics": metrics,
        "alarms": [asdict(alarm) for alarm in alarms(metrics, settings, void_share)],
        "steps": steps,
        "index": index,
        "packed": {str(step): text for step, text in packs.items()},
        "left_out": left_out,
    }


def pack(rows: Sequence[dict[str, Any]], tokens: bool = True) -> str:
    """Rollouts as compressed JSON in base64."""
    if not tokens:
        rows = [{**row, "turns": [_without_tokens(turn) for turn in row["turns"]]} for row in rows]
    text = json.dumps(rows, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def _without_tokens(turn: dict[str, Any]) -> dict[str, Any]:
    return {**turn, "token_chars": None, "logprobs": None}


def _index_and_packs(
    files: RunFiles, steps: Sequence[int], packed: bool
) -> tuple[dict[str, Any], dict[int, str], float | None]:
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    problems: dict[str, int] = {}
    packs: dict[int, str] = {}
    void: list[bool] = []
    for step in steps:
        entries, is_void, rows = files.cached(step, _entries, again=packed)
        for entry in entries:
            for name in _COLUMNS:
                columns[name].append(entry[name])
            columns["problem"][-1] = problems.setdefault(entry["problem"], len(problems))
        if packed:
            packs[step] = pack(rows)
        if step in steps[-VOID_STEPS:]:
            void += is_void
    return {**columns, "problems": list(problems)}, packs, sum(void) / len(void) if void else None


def _entries(step: int, rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[bool]]:
    """The index rows of a step, with the problem's id instead of its number; and which rollouts are void."""
    return [_index_row(step, row) for row in rows], [_is_void(row) for row in rows]


def _index_row(step: int, row: dict[str, Any]) -> dict[str, Any]:
    turns = row["turns"]
    calls = [call for turn in turns for call in turn["calls"]]
    advantages = [turn["advantage"] for turn in turns]
    return {
        "step": step,
        "rollout": row["rollout"],
        "group": row["group"],
        "problem": str(row["problem_id"]),
        "passed": int(row["passed"]),
        "stop": row["stop_reason"],
        "turns": len(turns),
        "calls": len(calls),
        "invalid": sum("invalid" in call for call in calls),
        "tokens": sum(turn["tokens"] for turn in turns),
        "reward": round(sum(turn["reward"] for turn in turns), 4),
        "low": round(min(advantages), 4),
        "high": round(max(advantages), 4),
        "errors": ",".join(sorted({status for turn in turns for status in turn["statuses"]} - {"ok"})),
    }


def _is_void(row: dict[str, Any]) -> bool:
    return row["stop_reason"] == "answer" and not row.get("has_answer", True)


def _smaller(files: RunFiles, packs: dict[int, str], max_bytes: int) -> tuple[dict[int, str], dict[str, int]]:
    """Drop token details except in the last steps; if that is not enough, keep only some steps, evenly spread."""
    steps = list(packs)
    bare = {
        step: packs[step] if step in steps[-_WITH_TOKENS:] else pack(files.rollouts(step), tokens=False)
        for step in steps
    }
    kept = steps
    every = 1
    while sum(len(bare[step]) for step in kept) > max_bytes and len(kept) > 1:
        every += 1
        kept = [step for place, step in enumerate(reversed(steps)) if place % every == 0][::-1]
    without_tokens = [step for step in kept if step not in steps[-_WITH_TOKENS:]]
    return (
        {step: bare[step] for step in kept},
        {"steps": len(steps) - len(kept), "token_details_of_steps": len(without_tokens)},
    )
