"""One session with an MCP server, from its start to its end; the only file that depends on the SDK (1.x and 2.x).

All sessions of a process live in one event loop, in its own thread: each generation batch has a new event loop, and a
session that rollouts share outlives it. Nothing here blocks the caller's loop.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import logging
import os
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, TypeVar

import anyio

from gtpo._http import parse_url
from gtpo.errors import ConfigError, GtpoError

T = TypeVar("T")
_GUARD = Path(__file__).with_name("guard.py")
_PING_S = 5.0
_CLOSING_S = 10.0
_LAST_WORDS, _MAX_LOG = 400, 2**20
"""Bytes of a server's stderr: how many are quoted, and how many are kept."""
_CLOSED, _TIMED_OUT, _SESSION_GONE = {-32000}, {408, -32001}, {32600, -32600}
"""Codes of errors that the SDK itself raises, not the server: 2.x has -32001 and -32600 where 1.x has 408 and 32600."""


class ConnectionLostError(GtpoError, RuntimeError):
    """The server is gone, or can't be reached.

    Attributes:
        reason: what the SDK said.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class RefusedError(GtpoError, RuntimeError):
    """The server is running and says that it can't do what was asked."""


class StuckError(GtpoError, RuntimeError):
    """The server is running but answers nothing; it has been stopped."""


@dataclass(frozen=True)
class Server:
    """Where a server is, and how it is reached.

    Attributes:
        address: a command, as a shell splits it, or a URL of the streamable HTTP transport.
        env: for a command: environment variables besides those that the SDK passes on (HOME, PATH and such).
        headers: for a URL: sent with every request.
        connect_s: time limit in seconds for the server to start and list its tools.
        call_s: time limit per call, in seconds.

    Raises:
        ConfigError: the address is blank, is not a valid URL, or names a program that does not exist.
    """

    address: str
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_s: float = 30.0
    call_s: float = 30.0

    def __post_init__(self) -> None:
        if self.is_url:
            parse_url(self.address, option=f"tools: {self}")
            return
        try:
            command = self.command
        except ValueError as error:
            raise ConfigError(f"tools: {self}: can't be read as a command ({error}): fix its quotes") from error
        if not command:
            raise ConfigError("tools: mcp: names no server: give a command or a URL, such as mcp:uvx mcp-server-time")
        if shutil.which(command[0]) is None:
            raise ConfigError(f"tools: {self}: there is no program {command[0]!r}: install it, or give its path")

    def __str__(self) -> str:
        return f"mcp:{self.address}"

    @property
    def is_url(self) -> bool:
        """Whether it is reached by HTTP."""
        return self.address.startswith(("http://", "https://"))

    @property
    def command(self) -> list[str]:
        """The command and its arguments."""
        return shlex.split(self.address)


class Connection:
    """A session with a server. Created and used only in the loop of `background`.

    Args:
        server: where it is.
        starting: limits how many servers start at the same time, each of which keeps a core busy for a second.

    Attributes:
        tools: what the server says of its tools, in the protocol's own names (`name`, `description`, `inputSchema`).
    """

    def __init__(self, server: Server, starting: asyncio.Semaphore) -> None:
        self.tools: list[dict[str, Any]] = []
        self._server, self._starting = server, starting
        self._stop = asyncio.Event()
        self._opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._log: IO[str] | None = None
        self._task = asyncio.create_task(self._live())
        _LIVE.add(self)
        self._task.add_done_callback(lambda _: _LIVE.discard(self))

    @property
    def over(self) -> bool:
        """Whether it was closed, or failed."""
        return self._stop.is_set() or self._task.done()

    async def opened(self) -> Any:
        """The SDK's session, once the server has listed its tools (`tools`).

        Raises:
            ConnectionLostError: the server can't be reached, or does not list its tools within `connect_s`; says why.
        """
        return await asyncio.shield(self._opened)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The result of a call, in the protocol's own names (`content`, `isError`).

        Raises:
            RefusedError: the server is running and gave an error of the protocol, or a result that can't be read.
            TimeoutError: no answer within `call_s`; the server is running.
            StuckError: no answer within `call_s`, nor to a ping; the server has been stopped.
            ConnectionLostError: the server is gone.
        """
        session = await self.opened()
        self._bound_log()
        try:
            return _plain(await self._answer(session.call_tool(name, dict(arguments)), self._server.call_s))
        except TimeoutError:
            if not await self._answers(session):
                self.close()
                raise StuckError(f"{self._server} has answered nothing since the call") from None
            raise
        except ConnectionLostError as error:
            if not self._task.done() and await self._answers(session):
                raise RefusedError(error.reason) from error
            self.close()
            raise

    async def _answers(self, session: Any) -> bool:
        """Whether the server answers a ping."""
        try:
            await self._answer(session.send_ping(), _PING_S)
        except (TimeoutError, ConnectionLostError):
            return False
        except RefusedError:  # it need not know what a ping is
            pass
        return True

    async def _answer(self, asked: Coroutine[Any, Any, T], limit_s: float) -> T:
        """The answer to a request, unless the time or the session ends before it comes."""
        request = asyncio.ensure_future(asked)
        request.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asked may have left
        try:
            await asyncio.wait({request, self._task}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waits_for = "nothing" if request.done() else "a server that is gone" if self._task.done() else "time"
            request.cancel()
        if waits_for == "time":
            raise TimeoutError
        if waits_for != "nothing":
            raise self._lost("the connection was closed")
        error = request.exception()
        if error is None:
            return request.result()
        code = getattr(getattr(error, "error", None), "code", None)
        if code in _TIMED_OUT:
            raise TimeoutError from error
        broken = code is None or code in _CLOSED | _SESSION_GONE
        if not broken or type(error) is RuntimeError:  # RuntimeError: a result that is not what its schema promises
            raise RefusedError(str(error)) from error
        raise self._lost(_reason(error)) from error

    def close(self) -> None:
        """End the session and the process behind it, without waiting for them."""
        self._stop.set()

    async def closed(self) -> None:
        """Wait until they have ended."""
        self.close()
        await asyncio.wait({self._task})

    async def _live(self) -> None:
        """Everything from start to end: the SDK wants both in one task."""
        try:
            async with AsyncExitStack() as stack:
                async with self._starting if not self._server.is_url else nullcontext():
                    streams = await stack.enter_async_context(self._transport())
                    session = await stack.enter_async_context(_sdk().ClientSession(*streams))
                    try:
                        with anyio.fail_after(self._server.connect_s):
                            await session.initialize()
                            self.tools = await _all_tools(session)
                    except TimeoutError:
                        return self._fail(f"no answer within {self._server.connect_s:g} s")
                self._opened.set_result(session)
                await self._stop.wait()
        except Exception as error:
            self._fail(_reason(error))
        finally:
            self._fail("the connection was closed")
            if self._log:
                self._log.close()

    def _fail(self, reason: str) -> None:
        if not self._opened.done():
            self._opened.set_exception(self._lost(reason))
            self._opened.exception()  # nobody may be waiting for it

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[tuple[Any, Any]]:
        if self._server.is_url:
            from mcp.client.streamable_http import streamable_http_client

            async with (
                _http_client(self._server) as client,
                streamable_http_client(self._server.address, http_client=client) as streams,
            ):
                yield streams[0], streams[1]
            return
        self._log = tempfile.TemporaryFile("a+", encoding="utf-8")  # noqa: SIM115 (closed with the connection)
        arguments = ["-I", "-S", str(_GUARD), str(os.getpid()), *self._server.command]
        parameters = _sdk().StdioServerParameters(command=sys.executable, args=arguments, env=dict(self._server.env))
        async with _sdk().stdio_client(parameters, errlog=self._log) as streams:
            yield streams[0], streams[1]

    def _bound_log(self) -> None:
        if self._log and os.fstat(self._log.fileno()).st_size > _MAX_LOG:
            os.ftruncate(self._log.fileno(), 0)

    def _lost(self, reason: str) -> ConnectionLostError:
        """An error that quotes the last that the server wrote to stderr."""
        written = b""
        if self._log and not self._log.closed:
            size = os.fstat(self._log.fileno()).st_size
            written = os.pread(self._log.fileno(), _LAST_WORDS, max(0, size - _LAST_WORDS))
        words = " ".join(written.decode(errors="replace").split())
        return ConnectionLostError(
            f"{self._server}: {reason}" + (f"; last output on stderr: {words}" if words else ""), reason
        )


async def _all_tools(session: Any) -> list[dict[str, Any]]:
    """All pages of the list. For a tool that it has not seen listed, the SDK would ask again with every call."""
    from mcp.types import PaginatedRequestParams

    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = _plain(await session.list_tools(params=PaginatedRequestParams(cursor=cursor)))
        found += page["tools"]
        cursor = page.get("nextCursor")
        if not cursor:
            return found


def _sdk() -> Any:
    try:
        return importlib.import_module("mcp")
    except ImportError as error:
        raise ConfigError("tools: mcp: needs the MCP SDK: pip install 'gtpo[mcp]'") from error


def _http_client(server: Server) -> Any:
    """A client of the SDK's HTTP library; it follows no redirects, because these would pass the headers on."""
    http = importlib.import_module("httpx" if version("mcp").startswith("1.") else "httpx2")
    timeout = http.Timeout(server.connect_s, read=max(server.connect_s, server.call_s) + _PING_S)
    return http.AsyncClient(headers=dict(server.headers), timeout=timeout)


def _plain(answer: Any) -> dict[str, Any]:
    """An answer with the protocol's own names, which the SDK's fields do not have in all versions."""
    return answer.model_dump(by_alias=True, mode="json", exclude_none=True)


def _reason(error: BaseException) -> str:
    """What the innermost of nested errors says."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__


_LIVE: set[Connection] = set()
_loops: dict[int, asyncio.AbstractEventLoop] = {}
_lock = threading.RLock()  # a finalizer may run wherever memory is taken


def background(asked: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine in the loop of all sessions, from any thread."""
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:  # also in a process forked from one that has a loop
            _LIVE.clear()
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="gtpo-mcp", daemon=True).start()
            logging.getLogger("mcp").addHandler(logging.NullHandler())  # what it says is said again in our errors
            atexit.register(_end, os.getpid())
    return asyncio.run_coroutine_threadsafe(asked, loop)


def _end(owner: int) -> None:
    """At the end of the process: close every server's session; a server that remains is ended by its guard."""

    async def all_closed() -> None:
        await asyncio.gather(*(connection.closed() for connection in list(_LIVE)))

    if os.getpid() == owner and _LIVE:
        with suppress(FutureTimeoutError):
            background(all_closed()).result(timeout=_CLOSING_S)
