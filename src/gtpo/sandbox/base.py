"""The interface of all code sandboxes: limits, statuses, the result type, and the protocol.

A result says what happened to the code. It is a hint and not a proof: code can end its own process with any
exit status, so do not give a reward for `Status.OK` alone.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from gtpo.errors import ConfigError
from gtpo.sandbox.levels import Level

NO_OUTPUT = "[no output]"
NOT_RUN = "[the code was not run]"


class Status(StrEnum):
    """How one execution ended. The supervisor checks timeout, output_limit, crashed in this order, then the others."""

    OK = "ok"
    """Ran to its end, or called `sys.exit(0)`."""
    ERROR = "error"
    """Raised an exception, has a syntax error, or called `sys.exit` with a nonzero value."""
    TIMEOUT = "timeout"
    """Used up its CPU time or its wall-clock time."""
    MEMORY = "memory"
    """Raised a `MemoryError` that it did not catch."""
    OUTPUT_LIMIT = "output_limit"
    """Printed more than `Limits.output_bytes` on one stream."""
    CRASHED = "crashed"
    """The process was ended by a signal (segmentation fault, abort)."""
    TOOL_FAILURE = "tool_failure"
    """The sandbox failed, not the code: never score the result, and never show it to the model."""


@dataclass(frozen=True)
class Limits:
    """Resource limits of one execution.

    Args:
        cpu_s: CPU time in seconds, summed over all threads. Imports count: sympy takes 0.3 s or more.
        wall_s: wall-clock time in seconds, looser than `cpu_s` because several executions share a core.
        memory_mb: address space in MiB in addition to that of the bare interpreter.
        output_bytes: maximum number of bytes of stdout and of stderr, each; printing more ends the execution.

    Raises:
        ConfigError: a value is not a number, not finite, or too small to run anything.
    """

    cpu_s: float = 3.0
    wall_s: float = 8.0
    memory_mb: int = 512
    output_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for name, least in (("cpu_s", 0.01), ("wall_s", 0.01), ("memory_mb", 16), ("output_bytes", 1)):
            value = getattr(self, name)
            whole = name in ("memory_mb", "output_bytes")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                kind = "a whole number" if whole else "a number"
                raise ConfigError(f"Limits.{name} must be {kind}, not {value!r}")
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"Limits.{name} must be finite and at least {least}, not {value!r}")


@dataclass(frozen=True)
class ExecResult:
    """The result of running one program.

    Args:
        status: how the program ended.
        stdout: its standard output, then the value of its last expression; malformed UTF-8 is replaced.
        stderr: its standard error, then the traceback, or the name of the signal that ended it.
        wall_s: wall-clock time in seconds, without the wait for a free worker.
        error_type: class name of the exception that ended it, if the process could report it.
        truncated: whether a stream was cut at `Limits.output_bytes`.
        note: one line from the supervisor, such as the limit that was reached; for `tool_failure` the cause, for logs
            only.
        cpu_s: CPU time in seconds, if it is known.
        max_rss_mb: peak resident memory in MiB, including pages shared with the server; 0 in a session.
        session_lost: whether it ran in a session whose process had to be ended with it, or was already gone.
    """

    status: Status
    stdout: str = ""
    stderr: str = ""
    wall_s: float = 0.0
    error_type: str | None = None
    truncated: bool = False
    note: str = ""
    cpu_s: float = 0.0
    max_rss_mb: float = 0.0
    session_lost: bool = False

    def render(self, max_chars: int = 2000) -> str:
        """Returns the text of this result for the model.

        The text is stdout. After an error, a crash or a lack of memory, stderr is added; after a limit, a note that
        names it. A success without output shows its stderr, or "[no output]". Longer text is cut in its middle, with a
        note of the number of characters removed. A `tool_failure` result gives the neutral "[the code was not run]",
        never its cause; callers should mask such a result first. Markup that looks like that of a chat template is
        returned verbatim: tokenise it as plain text.

        Args:
            max_chars: maximum length of the text, including the notes (if it has room for them).
        """
        if self.status is Status.TOOL_FAILURE:
            return NOT_RUN
        failed = self.status in (Status.ERROR, Status.MEMORY, Status.CRASHED)
        parts = [self.stdout.rstrip()]
        if failed or not (parts[0] or self.note):
            parts.append(self.stderr.rstrip())
        body = "\n".join(part for part in parts if part)
        note = f"[{self.note}]" if self.note else ""
        if not body:
            return note or NO_OUTPUT
        tail = f"\n{note}" if note else ""
        return _cut_middle(body, max(0, max_chars - len(tail))) + tail


def _cut_middle(text: str, max_chars: int) -> str:
    """Replaces the middle of `text` by a note; at most `max_chars` in total, if the note fits."""
    if len(text) <= max_chars:
        return text
    widest = f"\n[... {len(text)} characters cut ...]\n"
    keep = max(0, max_chars - len(widest))
    head, tail = keep - keep // 2, keep // 2
    return f"{text[:head]}\n[... {len(text) - keep} characters cut ...]\n{text[len(text) - tail :]}"


class Session(Protocol):
    """One process that runs several programs of a rollout."""

    async def run(self, code: str, *, limits: Limits | None = None) -> ExecResult:
        """Runs one program after all earlier ones."""

    async def aclose(self) -> None:
        """Ends the process; may be called more than once."""

    def close(self) -> None:
        """`aclose` for callers without an event loop."""


@runtime_checkable
class Sandbox(Protocol):
    """Runs untrusted Python code: each program in a fresh process, or the programs of a rollout in one session."""

    async def run(
        self, code: str, *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> ExecResult:
        """Runs one program to its end or its limits. Whatever the program does gives a result, never an exception.

        Args:
            code: source code of the program.
            limits: limits of this program; default: those of the sandbox.
            seed: seed for `random` and numpy's global generator; default: fresh randomness.
            key: the queue of the program, for example its rollout; queues of different keys take turns.
        """

    async def run_many(
        self, codes: Sequence[str], *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> list[ExecResult]:
        """Runs all programs, as many at once as there are workers; returns results in order. No item raises."""

    def session(self, *, fresh: bool = False, seed: int | None = None) -> Session:
        """Returns a session: one process that runs several programs of a rollout.

        Args:
            fresh: give each program new globals.
            seed: seed for `random` and numpy's global generator when the process starts; default: fresh randomness.

        Raises:
            ConfigError: this sandbox has no sessions.
        """

    def level(self) -> Level:
        """Returns the isolation that holds on this machine."""

    async def aclose(self) -> None:
        """Ends running programs and frees all processes, descriptors and directories; may be called more than once."""
