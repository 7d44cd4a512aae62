"""Runs several programs of one rollout in one process, in turn with other programs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from gtpo.sandbox._jobs import killed_if_cancelled, killed_if_interrupted
from gtpo.sandbox._worker import Call
from gtpo.sandbox.base import ExecResult, Limits

Submit = Callable[["LocalSession", str, "Limits | None"], "tuple[Call, Future[ExecResult]]"]
End = Callable[["LocalSession"], None]


class LocalSession:
    """One confined process for the programs of a rollout; created by `LocalSandbox.session`.

    The process is stopped between programs. If a program has to be killed (a timeout that an interrupt does not end, a
    crash, a lack of memory), the result has `session_lost` set and the next program starts in a new process.

    Args:
        submit: queues one program.
        end: ends the process.
        fresh: whether each program gets new globals.
        seed: seed for the random number generators when the process starts; default: fresh randomness.
    """

    def __init__(self, submit: Submit, end: End, fresh: bool, seed: int | None) -> None:
        self._submit, self._end = submit, end
        self.fresh, self.seed = fresh, seed
        self.name = secrets.token_hex(16)
        self.seat: Any = None
        self.alive = False
        self.under_way = 0

    async def run(self, code: str, *, limits: Limits | None = None) -> ExecResult:
        """Runs one program after all earlier ones; otherwise like `LocalSandbox.run`, including cancellation."""
        call, job = self._submit(self, code, limits)
        return await killed_if_cancelled(job, call.cancel)

    def run_sync(self, code: str, *, limits: Limits | None = None) -> ExecResult:
        """Like `run`, for callers without an event loop."""
        call, job = self._submit(self, code, limits)
        return killed_if_interrupted(job, call.cancel)

    async def aclose(self) -> None:
        """Ends the process; may be called more than once."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def close(self) -> None:
        """Like `aclose`, for callers without an event loop."""
        self._end(self)

    async def __aenter__(self) -> LocalSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
