"""Waiting for programs that run in a sandbox's threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any

from gtpo.sandbox.base import ExecResult, Status


async def killed_if_cancelled(job: Future[ExecResult], kill: Callable[[], object]) -> ExecResult:
    """Returns the result. If the waiting task is cancelled, calls `kill` and waits for the job's end, then raises."""
    waiting = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        kill()
        if not job.cancel():
            await asyncio.wait([waiting])
        raise


def killed_if_interrupted(job: Future[ExecResult], kill: Callable[[], object]) -> ExecResult:
    """Returns the job's result; blocks this thread, and calls `kill` if it is interrupted."""
    try:
        return job.result()
    except BaseException:
        kill()
        raise


async def all_results(jobs: Iterable[Coroutine[Any, Any, ExecResult]]) -> list[ExecResult]:
    """Returns all results in order; an exception becomes `Status.TOOL_FAILURE` with its text."""
    return [_as_result(result) for result in await asyncio.gather(*jobs, return_exceptions=True)]


def _as_result(result: ExecResult | BaseException) -> ExecResult:
    if isinstance(result, ExecResult):
        return result
    if isinstance(result, Exception):
        return ExecResult(Status.TOOL_FAILURE, note=f"{type(result).__name__}: {result}")
    raise result
