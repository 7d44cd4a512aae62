"""What lies outside a sandbox in a trial: a secret, a victim, listeners; and whether they were left alone."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from behaviours import Facts
from sandbox_support import children_of, open_files

TOKEN = "GTPO_BEHAVIOURS_TOKEN"
"""The trainer's environment variable that holds the secret."""

_PR_SET_CHILD_SUBREAPER = 36
_SETTLE_S = 3.0


class World:
    """Made by the trainer before its sandbox; afterwards `TMPDIR` is a directory of the trial's own."""

    def __init__(self) -> None:
        # What loses its parent becomes our child, so that nothing can hide from `strays`.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, *(ctypes.c_ulong(n) for n in (1, 0, 0, 0)))
        self.base = Path(tempfile.mkdtemp(prefix="gtpo-behaviours-")).resolve()
        self.tmp, self.outside = self.base / "tmp", self.base / "outside"
        self.tmp.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.tmp)
        secret = os.environ[TOKEN]
        self._in_memory = ctypes.create_string_buffer(secret.encode())
        self._listeners = self._listen()
        marker = "mark" + os.urandom(16).hex()
        self.facts = Facts(
            secret_text=secret,
            secret_file=str(self.outside / "secret.txt"),
            secret_address=ctypes.addressof(self._in_memory),
            outside_dir=str(self.outside),
            victim_pid=0,
            trainer_pid=os.getpid(),
            listener_port=self._listeners[0].getsockname()[1],
            socket_file=str(self.base / "socket"),
            socket_abstract=self._listeners[3].getsockname()[1:].decode(),
            marker=marker,
            marker_backwards=marker[::-1],
        )
        self._victim: subprocess.Popen[bytes] | None = None
        self.repair()
        self._leak = os.open(self.facts.secret_file, os.O_RDONLY)
        os.set_inheritable(self._leak, True)
        self.settle()

    def _listen(self) -> list[socket.socket]:
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", tcp.getsockname()[1]))
        in_file, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        in_file.bind(str(self.base / "socket"))
        abstract.bind("\0gtpo-behaviours-" + os.urandom(8).hex())
        for listener in (in_file, abstract):
            listener.listen()
        listeners = [tcp, udp, in_file, abstract]
        for listener in listeners:
            listener.setblocking(False)
        return listeners

    def repair(self) -> None:
        """Puts back what is gone or changed: the directory outside and the victim."""
        shutil.rmtree(self.outside, ignore_errors=True)
        self.outside.mkdir()
        Path(self.facts.secret_file).write_text(self.facts.secret_text)
        (self.outside / "other").write_text("something else")
        for name in ("secret.txt", "other"):
            (self.outside / name).chmod(0o600)
        if self._victim is not None:
            self._victim.kill()
            self._victim.wait()
        self._victim = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(10**6)"])
        self.facts.victim_pid = self._victim.pid

    def settle(self) -> None:
        """Takes the present state as the right one."""
        self._processes = self._descendants()
        self._descriptors = len(open_files())
        self._files = self._left()
        self._outside = self._state()
        self._arrived()

    def damage(self) -> list[str]:
        """One sentence for each thing that is not as it was at the last `settle`."""
        sentences = []
        deadline = time.monotonic() + _SETTLE_S
        while (processes := self._descendants()) != self._processes and time.monotonic() < deadline:
            time.sleep(0.02)
        if strays := processes - self._processes:
            sentences.append(f"{len(strays)} processes are left")
        if self._processes - processes:
            sentences.append("a process of the sandbox is gone")
        if more := len(open_files()) - self._descriptors:
            sentences.append(f"{more:+d} descriptors in the trainer")
        if left := sorted(self._left() - self._files):
            sentences.append(f"{len(left)} files are left, such as {left[0]}")
        if self._victim is None or not _running(self._victim.pid):
            sentences.append("the victim was killed or stopped")
        if self._state() != self._outside:
            sentences.append("something outside was changed")
        if number := self._arrived():
            sentences.append(f"{number} messages arrived at the listeners")
        return sentences

    def clear(self) -> None:
        """Ends stray processes and removes left-over files, then repairs and settles."""
        for pid in self._descendants() - self._processes:
            try:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
            except (ChildProcessError, ProcessLookupError):
                continue
        for name in sorted(self._left() - self._files):
            path = self.tmp / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self.repair()
        self.settle()

    def close(self) -> None:
        """Gives everything back."""
        if self._victim is not None:
            self._victim.kill()
            self._victim.wait()
        for listener in self._listeners:
            listener.close()
        os.close(self._leak)
        shutil.rmtree(self.base, ignore_errors=True)

    def _descendants(self) -> set[int]:
        found, pending = set(), [os.getpid()]
        while pending:
            children = [pid for pid in children_of(pending.pop()) if pid != self.facts.victim_pid]
            found.update(children)
            pending += children
        return found

    def _left(self) -> set[str]:
        names = set()
        for folder, directories, files in os.walk(self.tmp):
            names.update(os.path.relpath(os.path.join(folder, name), self.tmp) for name in directories + files)
        return names

    def _state(self) -> list[tuple[object, ...]]:
        state: list[tuple[object, ...]] = []
        if not self.outside.is_dir():
            return state
        for path in sorted([self.outside, *self.outside.rglob("*")]):
            entry = path.lstat()
            contents = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            attributes = os.listxattr(path, follow_symlinks=False)
            state.append((path, entry.st_mode, entry.st_mtime_ns, entry.st_uid, entry.st_nlink, contents, attributes))
        return state

    def _arrived(self) -> int:
        number = 0
        for listener in self._listeners:
            try:
                while True:
                    if listener.type == socket.SOCK_DGRAM:
                        listener.recv(64)
                    else:
                        listener.accept()[0].close()
                    number += 1
            except BlockingIOError:
                continue
        return number


def _running(pid: int) -> bool:
    """Whether a process lives and is not stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("T", "t", "Z", "X")
    except OSError:
        return False
