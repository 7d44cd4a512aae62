"""One JSON object per line over a stream socket, together with file descriptors.

Both ends belong to gtpo; untrusted code never has either.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Any

MAX_FDS = 3


class Channel:
    """A connected AF_UNIX stream socket that carries JSON objects and up to three descriptors with each.

    Several threads may send and close; one receives.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""
        self._fds: list[int] = []
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Sends one message; raises OSError if the other end is gone."""
        line = json.dumps({**message, "fds": len(fds)}).encode() + b"\n"
        with self._sending:
            if fds:
                socket.send_fds(self.sock, [line], list(fds))
            else:
                self.sock.sendall(line)

    def recv(self) -> tuple[dict[str, Any], list[int]] | None:
        """Returns the next message and its descriptors, which the caller must close; None when the other end hangs up.

        Raises:
            OSError: the socket failed, or a line is not a message.
        """
        while b"\n" not in self._buffer:
            data, fds, _, _ = socket.recv_fds(self.sock, 65536, MAX_FDS)
            self._fds += fds
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
            count = int(message.pop("fds"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise OSError(f"not a message: {line[:80]!r}") from error
        fds, self._fds = self._fds[:count], self._fds[count:]
        return message, fds

    def pending(self) -> bool:
        """Whether a whole message has been read from the socket and not been received yet."""
        return b"\n" in self._buffer

    def close(self) -> None:
        """Closes the socket and all descriptors that were not received."""
        with self._sending:
            for fd in self._fds:
                os.close(fd)
            self._fds = []
            self.sock.close()
