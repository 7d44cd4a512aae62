"""A seat runs one program at a time: it has two servers, retries failures, and converts replies to results."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from gtpo.errors import SandboxError
from gtpo.sandbox import preload
from gtpo.sandbox._worker import Call, Launch, Raw, Worker, WorkerDied
from gtpo.sandbox.base import ExecResult, Limits, Status

_ATTEMPTS = 2
_OVER_QUOTA = {
    "": "",
    "files": "more files were left than a session may keep",
    "memory": "more memory was in use at the end than a session may keep",
}


class Seat:
    """Runs one program at a time, on one of two servers: the light one, or the one with numpy and sympy loaded.

    Args:
        launch: how to start the light server.
        science: modules to load in the other server.
        warm: programs to run in the other server before the first call.

    Attributes:
        sessions: number of sessions whose process is here.
        failures: number of consecutive failures of the sandbox.
    """

    def __init__(self, launch: Launch, science: tuple[str, ...], warm: tuple[str, ...]) -> None:
        self.light = Worker(launch)
        self.scientific = Worker(replace(launch, preload=science, warm=warm))
        self.sessions = 0
        self.failures = 0

    def worker_for(self, code: str) -> Worker:
        """Returns the server that suits a program."""
        return self.scientific if preload.needs_science(code) else self.light

    def run(
        self,
        worker: Worker,
        code: str,
        limits: Limits,
        call: Call,
        options: dict[str, Any],
        refused: Collection[str],
        had_state: bool = False,
    ) -> ExecResult:
        """Runs one program, and retries it in a new server if the sandbox failed; never raises an Exception.

        Args:
            worker: one of the two servers.
            code: source code of the program.
            limits: limits of this program.
            call: the handle for cancelling it.
            options: see `Worker.execute`.
            refused: operations that a program must not be able to perform, as tested when the first server started.
            had_state: whether the program may need the state that earlier ones left in its process; then it is not
                retried.
        """
        cause = ""
        for _ in range(1 if had_state else _ATTEMPTS):
            try:
                raw = worker.execute(code, limits, call, options)
            except (WorkerDied, SandboxError, OSError) as error:
                cause = str(error)
                self.failures += 1
                continue
            if raw is None or call.cancelled:
                return ExecResult(Status.TOOL_FAILURE, note="cancelled")
            if not worker.refused >= set(refused):
                worker.stop()
                cause = "a new server does not reach the isolation of the first one"
                self.failures += 1
                continue
            if had_state and raw.reply["opened"]:
                return ExecResult(Status.TOOL_FAILURE, note="the process of the session is gone")
            result = _result(raw, limits)
            if result.status is not Status.TOOL_FAILURE:
                self.failures = 0
                return result
            cause = result.note
            self.failures += 1
            if worker is self.light or self.sessions <= ("session" in options):
                worker.stop(kill=True)  # unless it has the sessions of others, whose state would go with it
        return ExecResult(Status.TOOL_FAILURE, note=cause)

    def stop(self) -> None:
        """Ends both servers."""
        for worker in (self.light, self.scientific):
            with contextlib.suppress(OSError):
                worker.stop()


def _result(raw: Raw, limits: Limits) -> ExecResult:
    """Converts the server's reply and the two streams to a result."""
    status, detail = Status(raw.reply["status"]), raw.reply.get("detail", "")
    cut = [len(stream) > limits.output_bytes for stream in (raw.stdout, raw.stderr)]
    stdout, stderr = (s[: limits.output_bytes].decode("utf-8", "replace") for s in (raw.stdout, raw.stderr))
    note = ""
    if status is Status.TIMEOUT:
        limit, what = (limits.cpu_s, "processor time") if detail == "cpu" else (limits.wall_s, "running time")
        note = f"timed out: more than {limit:g} s of {what}"
    elif status is Status.OUTPUT_LIMIT:
        note = f"stopped: more than {limits.output_bytes} bytes of output"
    elif status is Status.CRASHED:
        stderr += f"the process was ended by {detail}\n"
    elif status is Status.TOOL_FAILURE:
        note = detail
    else:
        note = _OVER_QUOTA.get(raw.reply.get("over_quota", ""), "")
    return ExecResult(
        status,
        stdout,
        stderr,
        raw.reply["wall_s"],
        raw.reply.get("error_type"),
        any(cut),
        note,
        raw.reply["cpu_s"],
        raw.reply["max_rss_kib"] / 1024,
        raw.reply.get("lost", False),
    )
