"""The trainer's side of one fork server: starts it, gives it one program at a time, and replaces it when it fails."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import itertools
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gtpo.errors import SandboxError
from gtpo.sandbox._child.channel import Channel
from gtpo.sandbox._child.cleanup import remove
from gtpo.sandbox.base import Limits, Status

START_S = 60.0
GRACE_S = 10.0
CLEAN_S = 60.0
CLOSE_S = 5.0
UID = 61234
"""The user id that a server switches to if it starts as root; it needs no account."""
_NUMBER = (int, float)
_MUST: dict[str, Any] = {"status": str, "wall_s": _NUMBER, "cpu_s": _NUMBER, "max_rss_kib": _NUMBER, "clean": bool}
_MAY: dict[str, Any] = {
    "detail": str,
    "error_type": (str, type(None)),
    "opened": bool,
    "lost": bool,
    "over_quota": str,
}
_STATUSES = {status.value for status in Status}
_ADD_SEALS, _SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW, _SEAL_WRITE, _SEAL_FUTURE_WRITE = 1033, 1, 2, 4, 8, 16
_KEEP_SIZE_AND_PUNCH_HOLE = 3
_BOOT = "import sys; sys.path[0] = sys.argv[1]; from _child.start import main; main()"
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class WorkerDied(Exception):
    """The server of a worker is gone or did not answer in time."""


@dataclass(frozen=True)
class Launch:
    """How to start a server; see `_child.start.Config`.

    Args:
        confine: whether it gives up any rights; False only if the user asked for it.
        namespaces: whether it creates namespaces and a new root.
        preload: modules to import before the first program.
        warm: programs to run once before the first one.
    """

    confine: bool
    namespaces: bool
    preload: tuple[str, ...] = ()
    warm: tuple[str, ...] = ()


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
        """Kills the child if it runs, else prevents it from being started."""
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
        """From now on, `cancel` does not reach a server."""
        with self._lock:
            self._running = None


class Worker:
    """At most one fork server, started when first needed. Used by one thread at a time, except for `end_session`.

    Args:
        launch: how to start it.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._home = ""
        self.hello: dict[str, Any] = {}

    @property
    def pid(self) -> int | None:
        """Process id of the server, None if it is not running."""
        return self.hello.get("pid") if self._process else None

    @property
    def refused(self) -> frozenset[str]:
        """The operations that a child of the server could not perform when the server started."""
        return frozenset(self.hello["refused"])

    def start(self) -> None:
        """Starts the server unless it is already running.

        Raises:
            SandboxError: the server did not start; the message has its stderr.
        """
        if self._channel is not None:
            return
        self.hello = {}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs, tempfile.TemporaryFile() as log, _witness() as witness:
            self._channel = Channel(ours)
            try:
                if not self.launch.confine:
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
                command += [str(theirs.fileno()), self._config(witness)]
                self._process = subprocess.Popen(
                    command,
                    env=_ENVIRONMENT,
                    cwd=self._home or "/",
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
            self.hello, _ = received
            if "failed" in self.hello:
                self.stop()
                raise SandboxError(f"the sandbox server can't start: {self.hello['failed']}")
            self.hello.setdefault("pid", self._process.pid)

    def _config(self, witness: str) -> str:
        config: dict[str, Any] = {"home": self._home, "witness": witness, "site": site_directories(), "uid": UID}
        return json.dumps(config | asdict(self.launch))

    def execute(self, code: str, limits: Limits, call: Call, options: dict[str, Any] | None = None) -> Raw | None:
        """Runs one program; None if `call` was cancelled before it began.

        Args:
            code: source code of the program.
            limits: limits of this program.
            call: the handle for cancelling it.
            options: further fields of the request: "seed", and for a session "session" and "fresh".

        Raises:
            WorkerDied: the server is gone, or did not answer for longer than the limits allow; it has been cleaned
            up.
            SandboxError: the server could not be started.
        """
        if call.cancelled:
            return None
        self.start()
        assert self._channel is not None
        request: dict[str, Any] = {"op": "run", "seed": None, **(options or {}), "id": next(self._numbers)}
        request |= {"cpu_s": limits.cpu_s, "wall_s": limits.wall_s}
        request |= {"memory_mb": limits.memory_mb, "output_bytes": limits.output_bytes}
        with contextlib.ExitStack() as stack:
            keep = limits.output_bytes + 1
            files = [stack.enter_context(_code_file(code))]
            files += [stack.enter_context(_output_file(name, keep)) for name in ("stdout", "stderr")]
            self._channel.sock.settimeout(limits.wall_s + GRACE_S)
            try:
                if not call.begin(self._channel, request, tuple(file.fileno() for file in files)):
                    return None
                received = self._channel.recv()
            except OSError as error:
                self.stop(kill=True)
                raise WorkerDied(f"{type(error).__name__}: {error}") from error
            finally:
                call.end()
            if received is None:
                self.stop(kill=True)
                raise WorkerDied("the server ended")
            if not _is_reply(received[0]):
                self.stop(kill=True)
                raise WorkerDied(f"an unreadable reply: {received[0]}")
            if not received[0]["clean"]:
                self._await_cleaning()
            streams = [_read(file.fileno(), keep) for file in files[1:]]
            if "session" in request:
                for file in files[1:]:
                    _empty(file)
            return Raw(received[0], *streams)

    def end_session(self, name: str) -> None:
        """Ends the child of a session, if the server and the child exist; any thread may call this at any time.

        The server does it at once, whatever else it runs. It keeps the other end of a pipe open until it is done.
        """
        channel = self._channel
        if channel is None:
            return
        done, held = os.pipe()
        try:
            with contextlib.suppress(OSError):
                channel.send({"op": "close", "session": name}, (held,))
            os.close(held)
            waiting = select.poll()
            waiting.register(done)
            waiting.poll(CLOSE_S * 1000)
        finally:
            os.close(done)

    def _await_cleaning(self) -> None:
        """Waits until the server has removed the program's files; ends the server if that takes too long."""
        assert self._channel is not None
        self._channel.sock.settimeout(CLEAN_S)
        try:
            if self._channel.recv() is not None:
                return
        except OSError:
            pass
        self.stop(kill=True)

    def stop(self, kill: bool = False) -> None:
        """Ends the server, which ends its child, and cleans up after both; may be called at any time."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            if kill:
                self._kill()
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._kill()
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._home:
            remove(self._home)
            self._home = ""

    def _kill(self) -> None:
        """Ends the server at once; a process that started it in its namespaces then ends by itself."""
        assert self._process is not None
        if self.pid is None or self.pid == self._process.pid:
            self._process.kill()
        else:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def _witness() -> Iterator[str]:
    """A file that any user may change, in a directory that any user may add to, so only a sandbox prevents it."""
    directory = os.path.realpath(tempfile.mkdtemp(prefix=f"gtpo-witness-{os.getpid()}-"))
    try:
        os.chmod(directory, 0o777)
        path = os.path.join(directory, "witness")
        with open(path, "w", encoding="ascii") as file:
            file.write("outside\n")
        os.chmod(path, 0o666)
        yield path
    finally:
        remove(directory)


def site_directories() -> list[str]:
    """The directories with installed packages, without other entries of this process's path."""
    names = ("site-packages", "dist-packages")
    return [path for path in sys.path if os.path.basename(path) in names and os.path.isdir(path)]


def _code_file(code: str) -> Any:
    """The program's text in an unnamed file, sealed against changes if the system supports it."""
    file = _anonymous_file("code")
    file.write(code.encode("utf-8", "surrogatepass"))
    _seal(file, _SEAL_WRITE | _SEAL_GROW | _SEAL_SHRINK | _SEAL_SEAL)
    return file


def _output_file(name: str, size: int) -> Any:
    """An unnamed file for one stream; if the system can seal it, it holds `size` bytes in whole pages.

    A write past the seal fails as a whole, so the size must end at a page for every byte of it to be reached. Further
    seals may follow (`_empty`); the program can't add any.
    """
    file = _anonymous_file(name)
    file.truncate(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    _seal(file, _SEAL_GROW | _SEAL_SHRINK)
    return file


def _empty(file: Any) -> None:
    """Frees the memory of a stream and seals it against writes, since a session may have kept its descriptor."""
    if (fallocate := _fallocate()) is not None:
        size = os.fstat(file.fileno()).st_size
        fallocate(file.fileno(), _KEEP_SIZE_AND_PUNCH_HOLE, 0, size)  # before the seal, which refuses it
    with contextlib.suppress(OSError):  # Linux before 5.1 has no such seal
        _seal(file, _SEAL_FUTURE_WRITE)


@functools.cache
def _fallocate() -> Any:
    """The function of the C library, None if it does not exist."""
    found = getattr(ctypes.CDLL(None), "fallocate", None)
    if found is not None:
        found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return found


def _anonymous_file(name: str) -> Any:
    """An unnamed file, in memory if the system supports it."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create(f"gtpo-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _seal(file: Any, seals: int) -> None:
    if hasattr(os, "memfd_create"):
        fcntl.fcntl(file.fileno(), _ADD_SEALS, seals)


def _read(fd: int, count: int) -> bytes:
    """The content of a file up to its offset, which the program shared; at most `count` bytes."""
    parts, offset = [], 0
    end = min(count, os.lseek(fd, 0, os.SEEK_CUR))
    while offset < end and (part := os.pread(fd, end - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _is_reply(message: dict[str, Any]) -> bool:
    """Whether a message has the fields of a reply, each with the right type."""
    typed = all(isinstance(message.get(name), kind) for name, kind in _MUST.items())
    typed = typed and all(isinstance(message[name], kind) for name, kind in _MAY.items() if name in message)
    return typed and message["status"] in _STATUSES
