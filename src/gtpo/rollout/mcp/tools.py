"""The tools of an MCP server: contacted once to list its tools, then again for each rollout, or once for all.

The outcome of a call:

- the server's result, and its error results (`isError`), are observations, as are errors of the protocol;
- no answer within `call_s`: an observation, status `timeout`. A server that then answers nothing, not even a ping, is
  stopped and restarted with the next call; with one session per rollout, the model is told that the server's state is
  lost;
- a server that dies, or can't be reached again within `connect_s`: the tool has failed, and `gtpo.failures` masks the
  rollout. For the next rollout the server is started again.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential

from gtpo.errors import ConfigError
from gtpo.rollout.mcp.connection import (
    Connection,
    ConnectionLostError,
    RefusedError,
    Server,
    StuckError,
    background,
)
from gtpo.rollout.mcp.schema import chosen, spec_of, text_of
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.rollout.tools import ToolResult
from gtpo.types import ToolCall

STATE_LOST = "the session was started anew; what the server knew of this conversation is lost"
_STARTS_PER_CORE = 2


class MCPTools:
    """The tools of one server, for `tools=` of `GTPOTrainer`, alone or in a list.

    Args:
        address: a command, as a shell splits it, or a URL of the streamable HTTP transport.
        only: names of the tools to use; empty: all.
        session: "rollout": one session per rollout, started with its first call (for a command, one process);
            "shared": one for all rollouts, for servers that keep no state of a conversation.
        connect_s: time limit in seconds for the server to start and list its tools.
        call_s: time limit per call, in wall-clock seconds.
        env: for a command: environment variables besides HOME, PATH and such.
        headers: for a URL: sent with every request.

    Raises:
        ConfigError: the SDK is not installed, the server can't be reached, or it has no such tools.
    """

    def __init__(
        self,
        address: str,
        *,
        only: Sequence[str] = (),
        session: Literal["rollout", "shared"] = "rollout",
        connect_s: float = 30.0,
        call_s: float = 30.0,
        env: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if session not in ("rollout", "shared"):
            raise ConfigError(f"mcp_session must be rollout or shared, got {session!r}")
        self.server = Server(address, env or {}, headers or {}, connect_s, call_s)
        self.session = session
        self._starting = asyncio.Semaphore(_STARTS_PER_CORE * (os.cpu_count() or 1))
        self._by_key: dict[Hashable, _Session] = {}
        self._lock = threading.Lock()
        first = _Session(self.server, self._starting)
        try:
            listed = background(first.list_tools()).result()
        except ConnectionLostError as error:
            raise ConfigError(_unreachable(self.server, error)) from error
        finally:
            if session == "rollout":
                first.close()
        self._shared = first if session == "shared" else None
        self.tools = tuple(
            MCPTool(self, spec_of(tool, self.server)) for tool in chosen(listed, list(only), self.server)
        )
        self._finalizer = weakref.finalize(self, first.close)

    def __iter__(self) -> Iterator[MCPTool]:
        return iter(self.tools)

    def close(self) -> None:
        """End the shared session; those of rollouts end with their rollouts."""
        self._finalizer()

    def join(self, tool: str, key: Hashable) -> _Session:
        """The session in which a rollout uses a tool; the tools of a rollout share it."""
        if self._shared is not None:
            return self._shared
        with self._lock:
            session = self._by_key.get(key)
            if session is None or tool in session.joined:  # two rollouts may have one key: each opens a tool once
                session = self._by_key[key] = _Session(self.server, self._starting)
            session.joined.add(tool)
            session.users += 1
            return session

    def leave(self, session: _Session, key: Hashable) -> None:
        """A rollout no longer needs a tool; its session ends with the last one."""
        if session is self._shared:
            return
        with self._lock:
            session.users -= 1
            if session.users == 0:
                session.close()
                if self._by_key.get(key) is session:
                    del self._by_key[key]


class MCPTool:
    """One tool of a server."""

    def __init__(self, server: MCPTools, spec: ToolSpec) -> None:
        self.spec = spec
        self._server = server

    def open(self, key: Hashable) -> MCPToolUse:
        """The tool for one rollout; see `Tool.open`."""
        return MCPToolUse(self._server, self.spec, key)


class MCPToolUse:
    """A tool while one rollout uses it; created by `MCPTool.open`, closed by `aclose`."""

    def __init__(self, server: MCPTools, spec: ToolSpec, key: Hashable) -> None:
        self._server, self._spec, self._key = server, spec, key
        self._session: _Session | None = server.join(spec.name, key)

    async def run(self, call: ToolCall) -> ToolResult:
        """Run one call.

        Raises:
            ConnectionLostError: the server has died, or can't be reached.
        """
        if self._session is None:
            raise ConnectionLostError(f"{self._server.server}: a call after the end of its rollout")
        arguments = dict(call.arguments) or ({"code": call.code} if self._spec.is_python else {})
        limit = f"TimeoutError: no result within {self._server.server.call_s:g} s"
        try:
            result = await asyncio.wrap_future(background(self._session.call(self._spec.name, arguments)))
        except StuckError:
            return ToolResult(f"{limit}; {STATE_LOST}" if self._server.session == "rollout" else limit, "timeout")
        except TimeoutError:
            return ToolResult(limit, "timeout")
        except RefusedError as error:
            return ToolResult(f"Error: {error}", "error")
        return ToolResult(text_of(result), "error" if result.get("isError") else "ok")

    async def aclose(self) -> None:
        """The rollout is over; may be called twice. Does not wait for the server's process to end."""
        session, self._session = self._session, None
        if session is not None:
            self._server.leave(session, self._key)


class _Session:
    """A session that is opened when it is needed, and opened again after it was lost.

    `joined` and `users` belong to `MCPTools`; everything else happens in the loop of `background`.
    """

    def __init__(self, server: Server, starting: asyncio.Semaphore) -> None:
        self.joined: set[str] = set()
        self.users = 0
        self._server, self._starting = server, starting
        self._connection: Connection | None = None
        self._closed = False

    async def list_tools(self) -> list[dict[str, Any]]:
        """See `Connection.tools`."""
        connection = self._now()
        await connection.opened()
        return connection.tools

    async def call(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See `Connection.call`. A server that can't be reached is tried again for `connect_s`, with growing waits."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(ConnectionLostError),
            stop=stop_after_delay(self._server.connect_s),
            wait=wait_exponential(multiplier=0.5, max=8),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                connection = self._now()
                await connection.opened()
        return await connection.call(name, arguments)

    def _now(self) -> Connection:
        if self._closed:
            raise ConnectionLostError(f"{self._server}: the session was closed")
        if self._connection is None or self._connection.over:
            self._connection = Connection(self._server, self._starting)
        return self._connection

    def close(self) -> None:
        """End it, from any thread, without waiting."""

        async def close() -> None:
            self._closed = True
            if self._connection is not None:
                self._connection.close()

        background(close())


def _unreachable(server: Server, error: Exception) -> str:
    remedy = (
        "Start it, or correct the URL (its path is often /mcp)."
        if server.is_url
        else "Run the command by hand to see what is wrong, or raise mcp_connect_s if it is slow to start."
    )
    return f"tools: no MCP server answers: {error}. {remedy}"
