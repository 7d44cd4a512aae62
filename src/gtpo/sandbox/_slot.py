"""The trainer's end of one fork server: start it, hand it one program at a time, replace it when it fails."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from typing import Any

from gtpo.errors import SandboxError
from gtpo.sandbox._child.channel import Channel
from gtpo.sandbox._child.cleanup import remove
from gtpo.sandbox.base import Limits

START_S = 60.0
GRACE_S = 10.0
CLEAN_S = 60.0
_BOOT = "import sys; sys.path[0] = sys.argv[1]; from _child.server import main; main()"
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class SlotDied(Exception):
    """The server of a slot is gone or did not answer in time."""


@dataclass(frozen=True)
class Raw:
    """The server's reply for one program, and at most `output_bytes` + 1 bytes of each stream."""

    reply: dict[str, Any]
    stdout: bytes
    stderr: bytes


class Call:
    """One execution that another thread may cancel at any time."""

    def __init__(self) -> None:
        self.cancelled = False
        self._lock = threading.Lock()
        self._running: tuple[Channel, int] | None = None

    def cancel(self) -> None:
        """Has the child killed if it runs, and keeps it from being started if it does not."""
        with self._lock:
            self.cancelled = True
            if self._running is not None:
                channel, number = self._running
                with contextlib.suppress(OSError):
                    channel.send({"op": "cancel", "id": number})

    def begin(self, channel: Channel, request: dict[str, Any], fds: tuple[int, ...]) -> bool:
        """Sends the request unless the call was cancelled; returns whether it did."""
        with self._lock:
            if self.cancelled:
                return False
            channel.send(request, fds)
            self._running = (channel, request["id"])
            return True

    def end(self) -> None:
        """From here on `cancel` reaches no server."""
        with self._lock:
            self._running = None


class Slot:
    """At most one fork server, started when first needed. Used by one thread at a time.

    Args:
        confine: whether its children get the system-call filter.
    """

    def __init__(self, confine: bool) -> None:
        self._confine = confine
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._home = ""
        self.refused: frozenset[str] = frozenset()

    @property
    def pid(self) -> int | None:
        """Process number of the server, None if it is not running."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the server unless it is there already.

        Raises:
            SandboxError: it did not come up; the message has what it wrote to stderr.
        """
        if self._channel is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, tempfile.TemporaryFile() as log:
            self._channel = Channel(ours)
            try:
                self._home = os.path.realpath(tempfile.mkdtemp(prefix=f"gtpo-sandbox-{os.getpid()}-"))
                command = [
                    sys.executable,
                    "-s",
                    "-S",
                    "-B",
                    "-c",
                    _BOOT,
                    os.path.dirname(os.path.abspath(__file__)),
                ]
                command += [str(theirs.fileno()), self._home, str(int(self._confine)), *site_directories()]
                self._process = subprocess.Popen(
                    command,
                    env=_ENVIRONMENT,
                    cwd=self._home,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
                theirs.close()
                ours.settimeout(START_S)
                received = self._channel.recv()
            except OSError as error:
                self.stop()
                raise SandboxError(f"the sandbox server did not start: {error}") from error
            if received is None:
                self.stop()
                log.seek(0)
                said = log.read().decode("utf-8", "replace").strip()[-2000:]
                raise SandboxError(f"the sandbox server ended while starting: {said}")
            self.refused = frozenset(received[0]["refused"])

    def execute(self, code: str, limits: Limits, call: Call) -> Raw | None:
        """Runs one program; None if `call` was cancelled before it began.

        Raises:
            SlotDied: the server is gone, or silent for longer than the limits allow; it has been cleared
            away.
            SandboxError: the server could not be started.
        """
        if call.cancelled:
            return None
        self.start()
        assert self._channel is not None
        request = {"op": "run", "id": next(self._numbers), "cpu_s": limits.cpu_s, "wall_s": limits.wall_s}
        request |= {"memory_mb": limits.memory_mb, "output_bytes": limits.output_bytes}
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(_anonymous_file(name)) for name in ("code", "stdout", "stderr")]
            files[0].write(code.encode("utf-8", "surrogatepass"))
            self._channel.sock.settimeout(limits.wall_s + GRACE_S)
            try:
                if not call.begin(self._channel, request, tuple(file.fileno() for file in files)):
                    return None
                received = self._channel.recv()
            except OSError as error:
                self.stop(kill=True)
                raise SlotDied(f"{type(error).__name__}: {error}") from error
            finally:
                call.end()
            if received is None:
                self.stop(kill=True)
                raise SlotDied("the server ended")
            if not received[0]["clean"]:
                self._await_cleaning()
            keep = limits.output_bytes + 1
            return Raw(received[0], *(_read(file.fileno(), keep) for file in files[1:]))

    def _await_cleaning(self) -> None:
        """Waits until the server has removed what the program left; ends it if that takes too long."""
        assert self._channel is not None
        self._channel.sock.settimeout(CLEAN_S)
        try:
            if self._channel.recv() is not None:
                return
        except OSError:
            pass
        self.stop(kill=True)

    def stop(self, kill: bool = False) -> None:
        """Ends the server, which ends its child, and clears up after both; may be called at any time."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            if kill:
                self._process.kill()
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._home:
            remove(self._home)
            self._home = ""


def site_directories() -> list[str]:
    """The directories with installed packages, without anything else that is on this process's path."""
    names = ("site-packages", "dist-packages")
    return [path for path in sys.path if os.path.basename(path) in names and os.path.isdir(path)]


def _anonymous_file(name: str) -> Any:
    """A file without a name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create(f"gtpo-{name}"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _read(fd: int, count: int) -> bytes:
    """The first `count` bytes of a file, wherever its offset stands."""
    parts, offset = [], 0
    while offset < count and (part := os.pread(fd, count - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
