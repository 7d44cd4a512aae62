"""Connections of the sandbox's HTTP server: uvicorn's, with limits on time and number for each client.

uvicorn limits how long a connection may be idle between requests. This module limits the other ways of holding one: a
head that never ends, an answer that is never read, a further request before the answer, and too many connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
import sys
from collections import Counter
from typing import Any

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""Seconds for the head of a request, from the connection or its first byte on."""
IDLE_S = 60.0
"""Seconds between an answer and the next request."""
READ_S = 60.0
"""Seconds that a client may pause while it reads an answer."""
END_S = 2.0
"""Seconds for programs that run when the server ends."""
_BACKLOG, _OF_WORKER, _DESCRIPTORS = 512, 32, 65536
"""Connections that may be accepted at once, descriptors that a worker may need, and total descriptors requested."""
_LOG = logging.getLogger("gtpo.sandbox.serve")


def room(workers: int) -> int:
    """Number of connections for which descriptors are left besides the workers'; raises the limit if possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    least = _BACKLOG + _OF_WORKER * workers
    return max((_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft) - least, 16)


def server(app: Any, most_connections: int, most_in_all: int) -> Server:
    """Creates a uvicorn server without starting it.

    Args:
        app: ASGI application.
        most_connections: maximum number of connections per client; further ones are closed at once.
        most_in_all: maximum number of connections of all clients together.
    """
    clients: Counter[str] = Counter()

    class Connection(_Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.clients, self.most, self.most_in_all = clients, most_connections, most_in_all

    config = Config(
        app,
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_S,  # type: ignore[arg-type]
        timeout_graceful_shutdown=END_S,  # type: ignore[arg-type]
        backlog=_BACKLOG,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # what runs is the business of those who asked
    return Server(config)


class _Connection(H11Protocol):
    clients: Counter[str]
    most: int
    most_in_all: int
    _head: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _host: str | None = None
    """The client for which the connection is counted; None if it is not counted."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        host = (self.client or ("",))[0]
        if self.clients[host] >= self.most or self.clients.total() >= self.most_in_all:
            _LOG.warning("refused a connection from %s (%d open): too many connections", host, self.clients[host])
            transport.abort()  # not counted: many at once would take the places of other clients
            return
        self._host = host
        self.clients[host] += 1
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_pipelined():  # uvicorn would stop reading and not notice that the client disconnects
            self.transport.abort()
        elif self.conn.their_state is h11.IDLE:
            self._await_head()
        elif self._head is not None:
            self._head.cancel()
            self._head = None

    def _is_pipelined(self) -> bool:
        """Whether a further request has begun before this one is answered, which no client of the API does."""
        answering = self.cycle is not None and not self.cycle.response_complete
        return answering and self.conn.their_state is h11.DONE and bool(self.conn.trailing_data[0])

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_S, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._reading):
            if timer is not None:
                timer.cancel()
        if self._host is not None:
            self.clients[self._host] -= 1
            if not self.clients[self._host]:
                del self.clients[self._host]
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """As SandboxFusion's clients expect: a length that is not a number counts as missing."""
        length = "Content-Length" in str(sys.exc_info()[1])
        body = json.dumps({"detail": "Content-Length must be a whole number" if length else msg}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=411 if length else 400, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
