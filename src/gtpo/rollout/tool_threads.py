"""Runs the user's functions outside the event loop, so that none of them can block it.

Python can't end a thread. At the time limit, the caller continues at once with a timeout; the thread is a daemon, so
the program does not wait for it at its end; and once `MOST_STUCK` calls of a function are still running after their
limit, further calls fail, so that their number stays bounded. C code that holds the interpreter lock stops every thread
of the process while it runs; only a separate process avoids that (`gtpo.rollout.tool_process`).
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from gtpo.errors import GtpoError

MOST_STUCK = 32
_ANSWER_S = 1.0
"""Seconds within which a loop that is not blocked answers."""


class LateError(Exception):
    """A call did not end within its time limit."""


class ToolStuckError(GtpoError, RuntimeError):
    """Too many calls of a function are still running after their time limit."""


class Threads:
    """Calls one function, sync (a thread for each call) or async (all calls in the event loop of one thread).

    Args:
        function: called with the call's arguments.
        timeout_s: time limit per call, in wall-clock seconds.
    """

    def __init__(self, function: Callable[..., Any], timeout_s: float) -> None:
        self._function, self._timeout_s = function, timeout_s
        self._is_async = inspect.iscoroutinefunction(function)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner, self._lock = 0, threading.Lock()
        self._stuck: set[Future[Any]] = set()

    async def call(self, arguments: Mapping[str, Any]) -> Any:
        """What the function returns.

        Raises:
            LateError: the function did not return in time.
            ToolStuckError: too many calls are still running after their time limit.
            Exception: what the function raises.
        """
        with self._lock:
            stuck = len(self._stuck)
        if stuck >= MOST_STUCK:
            raise ToolStuckError(
                f"{stuck} calls are still running after their time limit of {self._timeout_s:g} s, and Python can't "
                "end a thread: let the function time out by itself, or run it in separate processes, "
                "FunctionTool(function, process=True)"
            )
        if self._is_async:
            return await self._call_async(arguments)
        running: Future[Any] = Future()
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run, args=(fulfil, running, self._function, arguments), name="gtpo-tool", daemon=True
        )
        thread.start()
        return await self._within_time(running)

    async def _call_async(self, arguments: Mapping[str, Any]) -> Any:
        loop = self._own_loop()
        running = asyncio.run_coroutine_threadsafe(self._coroutine(arguments), loop)
        try:
            return await self._within_time(running)
        except (LateError, asyncio.CancelledError):
            running.cancel()
            await self._leave_if_blocked(loop)
            raise

    async def _coroutine(self, arguments: Mapping[str, Any]) -> Any:
        return await self._function(**arguments)

    async def _within_time(self, running: Future[Any]) -> Any:
        try:
            # Shielded: a thread's future stays as it is, and tells when the thread has ended.
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(running)), self._timeout_s)
        except (TimeoutError, asyncio.CancelledError) as error:
            if running.done():
                return running.result()
            self._note_stuck(running)
            if isinstance(error, TimeoutError):
                raise LateError from None
            raise

    def _note_stuck(self, running: Future[Any]) -> None:
        with self._lock:
            self._stuck.add(running)
        running.add_done_callback(self._no_longer_stuck)

    def _no_longer_stuck(self, running: Future[Any]) -> None:
        with self._lock:
            self._stuck.discard(running)

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._owner != os.getpid():  # a forked child has the loop, but not its thread
                self._loop, self._owner = asyncio.new_event_loop(), os.getpid()
                threading.Thread(target=_run_loop, args=(self._loop,), name="gtpo-tool-loop", daemon=True).start()
            return self._loop

    async def _leave_if_blocked(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let later calls use a new loop if a function blocks this one."""
        answered: Future[None] = Future()
        loop.call_soon_threadsafe(answered.set_result, None)
        try:
            await asyncio.wait_for(asyncio.wrap_future(answered), _ANSWER_S)
        except TimeoutError:
            with self._lock:
                if self._loop is loop:
                    self._loop = None


def fulfil(running: Future[Any], function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Call a function, and set a future to its result or exception."""
    if not running.set_running_or_notify_cancel():
        return
    try:
        running.set_result(function(**arguments))
    except BaseException as error:  # SystemExit too: it is the call that ends with it, not the run
        running.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
