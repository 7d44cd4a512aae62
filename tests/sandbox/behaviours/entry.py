"""What one behaviour is, and the facts about the world outside that its program is aimed at."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol


class Outcome(Protocol):
    """The part of `gtpo.sandbox.ExecResult` that the checks read."""

    status: Any
    stdout: str
    stderr: str
    error_type: str | None
    wall_s: float
    truncated: bool


@dataclass
class Facts:
    """What lies outside the sandbox; every field but the secret's text may stand in a program, in capitals.

    Args:
        secret_text: contents of the secret file, of the trainer's environment, and of a buffer in its memory.
        secret_file: path of the secret file, in `outside_dir`.
        secret_address: address of that buffer in the trainer.
        outside_dir: a directory that is none of the sandbox's business.
        victim_pid: a harmless process of the same user.
        trainer_pid: the process that made the sandbox.
        listener_port: on 127.0.0.1, of a TCP and of a UDP socket.
        socket_file: path of a listening AF_UNIX socket.
        socket_abstract: name of another one, without the leading NUL.
        marker: a text that only the first of two programs holds.
        marker_backwards: the same for the second, which must not hold the marker in order to look for it.
    """

    secret_text: str
    secret_file: str
    secret_address: int
    outside_dir: str
    victim_pid: int
    trainer_pid: int
    listener_port: int
    socket_file: str
    socket_abstract: str
    marker: str
    marker_backwards: str

    def fill(self, code: str) -> str:
        """`code` with SECRET_FILE and the like replaced by their values as Python literals."""
        names = [f.name.upper() for f in fields(self) if f.name != "secret_text"]
        pattern = rf"\b({'|'.join(sorted(names, key=len, reverse=True))})\b"
        return re.sub(pattern, lambda match: repr(getattr(self, match[1].lower())), code)


Check = Callable[[Sequence[Outcome], Facts], str]
"""Looks at the outcomes of a behaviour's programs; "" if it held, else one sentence that says what was wrong."""


@dataclass(frozen=True)
class Behaviour:
    """One behaviour.

    Args:
        name: a few words, unique in the list.
        area: which part of the list it belongs to.
        code: the program, or several that run one after another.
        holds: see `Check`.
        limits: what differs from `LIMITS`, as arguments of `gtpo.sandbox.Limits`.
        harmless: may be run without a sandbox.
        rollouts: for each program the rollout whose session it runs in, "" for a process of its own; by default none
            runs in a session.
        pause_s: seconds between two programs.
    """

    name: str
    area: str
    code: str | tuple[str, ...]
    holds: Check
    limits: dict[str, Any] = field(default_factory=dict)
    harmless: bool = True
    rollouts: tuple[str, ...] = ()
    pause_s: float = 0.0

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs in their order."""
        return (self.code,) if isinstance(self.code, str) else self.code


LIMITS = {"cpu_s": 4.0, "wall_s": 12.0, "memory_mb": 512, "output_bytes": 60_000}
"""Generous in time, since most programs end by themselves and the machine may be busy; no round number of pages."""

QUICK = {"cpu_s": 0.5, "wall_s": 1.5}
"""For programs that never end."""

SHORT_WALL = {"cpu_s": 5.0, "wall_s": 0.7}
"""For programs that never end and do not compute."""
