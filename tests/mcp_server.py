"""An MCP server for tests, written with the SDK (1.x or 2.x): on stdio, or with `--port N` over streamable HTTP."""

from __future__ import annotations

import asyncio
import os
import sys

from pydantic import BaseModel

try:
    from mcp.server.mcpserver import Context, MCPServer
except ImportError:
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as MCPServer

PORT = int(sys.argv[sys.argv.index("--port") + 1]) if "--port" in sys.argv else 0
LATER = {} if hasattr(MCPServer, "_handle_call_tool") or not PORT else {"port": PORT}
server = MCPServer("for tests", **LATER)
counts: dict[str, int] = {}


class Place(BaseModel):
    """Where."""

    city: str
    country: str | None = None


@server.tool()
def add(a: int, b: int = 1) -> int:
    """Add two integers."""
    return a + b


@server.tool()
def count(ctx: Context) -> str:
    """Count the calls of this session."""
    request = getattr(ctx.request_context, "request", None)
    session = request.headers["mcp-session-id"] if request else str(os.getpid())
    counts[session] = counts.get(session, 0) + 1
    return f"{counts[session]} in {session}"


@server.tool()
def weather(place: Place, days: int | None = None, tags: list[str] | None = None) -> str:
    """Tell the weather."""
    return f"rain in {place.city} for {days} days {tags}"


@server.tool()
def boom() -> str:
    """Fail."""
    raise ValueError("it went off")


@server.tool()
async def wait(seconds: float) -> str:
    """Wait, and let others be served."""
    await asyncio.sleep(seconds)
    return f"waited {seconds}"


@server.tool()
def big(length: int) -> str:
    """Give a long text."""
    return "x" * length


@server.tool()
def environment(name: str) -> str:
    """Give an environment variable."""
    return os.environ.get(name, "not set")


if __name__ == "__main__":
    if not PORT:
        server.run("stdio")
    elif LATER:
        server.run("streamable-http")
    else:
        server.run("streamable-http", port=PORT)
