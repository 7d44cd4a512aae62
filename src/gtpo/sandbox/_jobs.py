"""Waiting for programs that run in a sandbox's threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any

from gtpo.sandbox.base import ExecResult, Status


async def killed_if_cancelled(job: Future[ExecResult], kill: Callable[[], object]) -> ExecResult:
    """The result. If the waiting task is cancelled, calls `kill` and waits for the end of the job before it raises."""
    waiting = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        kill()
        if not job.cancel():
            await asyncio.wait([waiting])
        raise


def killed_if_interrupted(job: Future[ExecResult], kill: Callable[[], object]) -> ExecResult:
    """The job's result, waited for in this thread; an interrupt of it calls `kill`."""
    try:
        return job.result()
    except BaseException:
        kill()
        raise


async def all_results(jobs: Iterable[Coroutine[Any, Any, ExecResult]]) -> list[ExecResult]:
    """The results of all, in their order; an exception of one becomes `Status.TOOL_FAILURE` with its text."""
    return [_as_result(result) for result in await asyncio.gather(*jobs, return_exceptions=True)]


def _as_result(result: ExecResult | BaseException) -> ExecResult:
    if isinstance(result, ExecResult):
        return result
    if isinstance(result, Exception):
        return ExecResult(Status.TOOL_FAILURE, note=f"{type(result).__name__}: {result}")
    raise result
