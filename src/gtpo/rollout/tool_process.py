"""Runs the user's functions in separate processes, which are killed at the time limit, whatever they do.

A process takes one call after another, so a function may keep what it loads; killing a call kills its process, and the
next call starts another. Arguments and results are passed as JSON. Unlike with `gtpo.rollout.tool_threads`, nothing can
block the trainer, not even C code that holds the interpreter lock; in return, each process has to be started and loads
the function's modules once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib.resources import files
from typing import Any

from gtpo.errors import ConfigError, GtpoError
from gtpo.rollout.tool_threads import LateError, fulfil

MOST_PROCESSES = 8
"""Maximum number of processes per function; further calls wait, and their time counts from when they begin."""
START_S = 120.0
"""Seconds within which a process must have loaded the function."""


class ToolProcessError(GtpoError, RuntimeError):
    """A tool's process can't be started, or ended by itself in the middle of a call."""


class RaisedError(Exception):
    """What a function raised, as text: class and message."""


class Processes:
    """Calls one function in separate processes.

    Args:
        function: defined at the top of a module or file, so that a process can load it by its name.
        timeout_s: time limit per call, in wall-clock seconds.

    Raises:
        ConfigError: the function is defined elsewhere.
    """

    def __init__(self, function: Callable[..., Any], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._source = json.dumps(_source(function))
        self._idle: list[_Process] = []
        self._places = threading.BoundedSemaphore(MOST_PROCESSES)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _end_all, self._idle, self._owner)

    async def call(self, arguments: Mapping[str, Any]) -> Any:
        """The function's return value, as converted to JSON; a `ToolResult` stays one.

        Raises:
            LateError: the function did not return in time; its process was killed.
            ToolProcessError: the process failed.
            RaisedError: what the function raised.
        """
        running: Future[Any] = Future()
        call = _Cancellable()
        work = {"arguments": arguments, "call": call}
        threading.Thread(target=fulfil, args=(running, self._call, work), name="gtpo-tool", daemon=True).start()
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            call.cancel()
            raise

    def _call(self, arguments: Mapping[str, Any], call: _Cancellable) -> Any:
        with self._places:
            process = self._take()
            if not call.begin(process):
                process.kill()
                raise ToolProcessError("cancelled")
            message = process.ask(arguments, self._timeout_s)
            if message is None:
                raise LateError
            with self._lock:
                self._idle.append(process)
        if "error" in message:
            raise RaisedError(message["error"])
        if "tool_result" in message:
            from gtpo.rollout.tools import ToolResult

            return ToolResult(*message["tool_result"])
        return message["value"]

    def _take(self) -> _Process:
        with self._lock:
            while self._idle and os.getpid() == self._owner:
                process = self._idle.pop()
                if process.alive:
                    return process
                process.kill()
        return _Process(self._source)


class _Process:
    def __init__(self, source: str) -> None:
        worker = str(files("gtpo.rollout").joinpath("_tool_worker.py"))
        theirs, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, worker, source, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._lifeline)
            raise ToolProcessError(f"a process can't be started: {error}") from error
        finally:
            os.close(theirs)
        message = self._answer(START_S)
        if message is None or "error" in message:
            self.kill()
            said = message["error"] if message else f"not loaded within {START_S:g} s"
            raise ToolProcessError(f"the function can't be loaded in a separate process: {said}")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, arguments: Mapping[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """The answer; None if it did not come in time, in which case the process is gone."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a process that has ended is told of below
            self._process.stdin.write(json.dumps(dict(arguments)).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(timeout_s)

    def _answer(self, timeout_s: float) -> dict[str, Any] | None:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.end()

        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if late.is_set():
            self.kill()
            return None
        if not line.endswith(b"\n"):
            self.kill()
            raise ToolProcessError(
                f"its process ended in the middle of a call (exit status {self._process.returncode})"
            )
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """End it; whoever waits for its answer releases its resources."""
        self._process.kill()

    def kill(self) -> None:
        """End it and release its resources; may be called twice."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


class _Cancellable:
    """A call that another thread may cancel."""

    def __init__(self) -> None:
        self._lock, self._cancelled = threading.Lock(), False
        self._process: _Process | None = None

    def begin(self, process: _Process) -> bool:
        with self._lock:
            self._process = process
            return not self._cancelled

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._process is not None:
                self._process.end()


def _source(function: Callable[..., Any]) -> dict[str, Any]:
    """How a process loads the function."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    by_file = module == "__main__" or str(module).startswith("_gtpo_file_")
    if not module or not name or "<" in name or (by_file and not file):
        raise ConfigError(
            f"tools: the function {name or function!r} can't run in a separate process: define it at the top of a "
            "module or file, so that the process can load it"
        )
    path = [os.path.abspath(part) if part else os.getcwd() for part in sys.path]
    named = "_gtpo_tool" if module == "__main__" else module
    return {"module": named, "name": name, "file": os.path.abspath(file) if by_file and file else None, "path": path}


def _end_all(idle: list[_Process], owner: int) -> None:
    if os.getpid() == owner:
        for process in idle:
            process.kill()
