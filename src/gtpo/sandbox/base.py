"""What every code sandbox of gtpo offers: limits, statuses, one result type, and the protocol.

A result says what happened to the code. It is a hint and never a proof: code can end its own process with any
exit status it likes, so a reward must not be given for `Status.OK` alone.
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
    """How one execution ended; the supervisor decides, in the order timeout, output_limit, crashed, rest."""

    OK = "ok"
    """Ran to its end, or left by `sys.exit(0)`."""
    ERROR = "error"
    """An exception, a syntax error, or a nonzero `sys.exit`."""
    TIMEOUT = "timeout"
    """Used up its processor time or its wall-clock time."""
    MEMORY = "memory"
    """A `MemoryError` that the code did not catch."""
    OUTPUT_LIMIT = "output_limit"
    """Printed more than `Limits.output_bytes` on one stream."""
    CRASHED = "crashed"
    """The process was ended by a signal (segmentation fault, abort)."""
    TOOL_FAILURE = "tool_failure"
    """The sandbox failed, not the code: never score it, never show it to the model."""


@dataclass(frozen=True)
class Limits:
    """What one execution may use.

    Args:
        cpu_s: processor time in seconds, all threads together. Imports count: sympy costs 0.3 s or more.
        wall_s: wall-clock seconds, looser than `cpu_s` because several executions share a core.
        memory_mb: address space in MiB on top of the bare interpreter's.
        output_bytes: bytes kept of each of stdout and stderr; printing more ends the execution.

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
    """What became of one piece of code.

    Args:
        status: how it ended.
        stdout: what it printed, then the value of its last expression; malformed UTF-8 is replaced.
        stderr: what it wrote there; then the traceback, or the name of the signal that ended it.
        wall_s: wall-clock seconds, without the wait for a free worker.
        error_type: class name of the exception that ended it, as far as the process could report it.
        truncated: a stream was cut at `Limits.output_bytes`.
        note: one line by the supervisor, e.g. which limit was reached; for `tool_failure` the cause, for logs only.
        cpu_s: processor time in seconds, as far as it is known.
        max_rss_mb: largest resident memory in MiB, shared pages of the server included; 0 in a session.
        session_lost: it ran in a session whose process had to be ended with it, or had gone before it.
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
        """The one text that the model sees of this result.

        stdout; after an error, a crash or a lack of memory also stderr; after a limit a note that names it.
        A silent success shows its stderr, or "[no output]". Longer text is cut in its middle, with a note
        of how many characters went. A `tool_failure` result gives a neutral "[the code was not run]", never its
        cause; callers should have masked it before. Markup that looks like a chat template's is returned
        verbatim: tokenise it as plain text.

        Args:
            max_chars: upper bound on the length of the text, the notes included (if it has room for them).
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
    """`text` with its middle replaced by a note; at most `max_chars` in all, if the note fits."""
    if len(text) <= max_chars:
        return text
    widest = f"\n[... {len(text)} characters cut ...]\n"
    keep = max(0, max_chars - len(widest))
    head, tail = keep - keep // 2, keep // 2
    return f"{text[:head]}\n[... {len(text) - keep} characters cut ...]\n{text[len(text) - tail :]}"


class Session(Protocol):
    """One process for several programs of a rollout."""

    async def run(self, code: str, *, limits: Limits | None = None) -> ExecResult:
        """Runs one program after those given before it."""

    async def aclose(self) -> None:
        """Ends the process; may be called twice."""

    def close(self) -> None:
        """`aclose` for callers without an event loop."""


@runtime_checkable
class Sandbox(Protocol):
    """Runs untrusted Python code: each program in a fresh process, or a rollout's programs in one of their own."""

    async def run(
        self, code: str, *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> ExecResult:
        """Runs one program to its end or its limits; whatever the code does is a result.

        Args:
            code: source text.
            limits: of this program; the sandbox's own by default.
            seed: of `random` and numpy's global generator; fresh randomness by default.
            key: whose turn it takes; programs of different keys are served in turn.
        """

    async def run_many(
        self, codes: Sequence[str], *, limits: Limits | None = None, seed: int | None = None, key: Hashable = None
    ) -> list[ExecResult]:
        """Runs all, as many at once as there are workers; results in the order of `codes`; no item raises."""

    def session(self, *, fresh: bool = False, seed: int | None = None) -> Session:
        """One process for several programs of a rollout.

        Args:
            fresh: give each program new globals.
            seed: of `random` and numpy's global generator when the process starts; fresh randomness by default.

        Raises:
            ConfigError: this sandbox has no sessions.
        """

    def level(self) -> Level:
        """What really holds here."""

    async def aclose(self) -> None:
        """Ends what is running, gives back every process, descriptor and directory; may be called twice."""
