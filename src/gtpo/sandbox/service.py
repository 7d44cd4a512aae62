"""Serves the local sandbox over SandboxFusion's HTTP API, so that CPU machines can run programs for GPU machines.

`POST /run_code` accepts the requests of a SandboxFusion server (language `python`) and answers in its format;
`GET /v1/ping` returns "pong"; `GET /v1/status` returns the load. Each program runs in a fresh process of a
`LocalSandbox`, with the same confinement, and is ended when the client disconnects.
Differences from SandboxFusion:

- A program that ends with an error has return code 1, whatever exit status it used.
- Only Python programs: no other language, no compile step, no files, no `fetch_files`.
- The queue is bounded: further requests are rejected with HTTP status 429 and a time after which to retry.

A client may have `CONNECTIONS` connections at a time, but at most three quarters of those for which there are
descriptors; `_http` and `_connections` limit the time of each step.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gtpo.errors import ConfigError, SandboxError
from gtpo.sandbox.base import ExecResult, Limits, Status
from gtpo.sandbox.local import LocalSandbox

KEY_HEADER = "X-API-Key"
CONNECTIONS = 1024
_RETRY_AFTER_S = 1
_STDIN = """import io, sys
sys.stdin = io.TextIOWrapper(io.BytesIO({data}), encoding="utf-8")
exec(compile({code!r}, "<code>", "exec"), {{"__name__": "__main__"}})
"""


class SandboxService:
    """An HTTP server for a sandbox; `serve_forever` runs it, `close` ends it.

    Args:
        sandbox: runs the programs; closed with the service.
        host, port: address to listen on; port 0 chooses a free port.
        waiting: maximum number of requests that wait for a worker; further ones are rejected.
        key: value that requests must send as `X-API-Key`; None: no key is needed.
        most: maximum limits of a program; higher limits in a request are reduced to these.

    Raises:
        ConfigError: the address is unavailable, or `waiting` or `key` is invalid.
    """

    def __init__(
        self,
        sandbox: LocalSandbox,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        waiting: int = 256,
        key: str | None = None,
        most: Limits | None = None,
    ) -> None:
        self.sandbox, self.key = sandbox, key
        self.most = most or Limits(cpu_s=60.0, wall_s=120.0, memory_mb=4096)
        self.places = waiting + sandbox.max_workers
        self.retry_after_s = _RETRY_AFTER_S
        self.under_way = self.served = self.turned_away = 0
        self.bodies: Counter[str] = Counter()  # bytes of bodies being read, by client
        self.lock = threading.Lock()
        if waiting < 0:
            raise ConfigError(f"waiting must be at least 0, got {waiting}")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ConfigError("the key must be printable ASCII, since it is sent in an HTTP header")
        try:
            self._socket = socket.create_server((host, port), backlog=512)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"can't listen on {host}:{port}: {error}; choose another --host or --port") from error
        self.server_address = self._socket.getsockname()[:2]
        # Imported here so that the web server is loaded only when it is used.
        from gtpo.sandbox import _connections, _http

        total = _connections.room(sandbox.max_workers)
        self._server = _connections.server(_http.application(self), min(CONNECTIONS, total * 3 // 4), total)

    def serve_forever(self, poll_interval: float = 0.1) -> None:
        """Serves requests until another thread calls `shutdown` or a signal ends the process."""
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def shutdown(self) -> None:
        """Makes `serve_forever` return soon."""
        self._server.should_exit = True

    def server_close(self) -> None:
        """Closes the listening socket."""
        self._socket.close()

    @property
    def url(self) -> str:
        """URL of the server."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Ends running programs and frees all resources."""
        self.server_close()
        self.sandbox.close()

    def connections(self) -> int:
        """Number of open connections of all clients."""
        return len(self._server.server_state.connections)

    def enter(self) -> bool:
        """Takes a place for a request; returns False if there is none."""
        with self.lock:
            if self.under_way >= self.places:
                return False
            self.under_way += 1
            return True

    def turn_away(self) -> None:
        """Counts a rejected request."""
        with self.lock:
            self.turned_away += 1

    def has_room(self) -> bool:
        """Whether `enter` would succeed."""
        with self.lock:
            return self.under_way < self.places

    def leave(self) -> None:
        """Frees the place of a request."""
        with self.lock:
            self.under_way -= 1
            self.served += 1

    def load(self) -> dict[str, int]:
        """Numbers of workers, and of requests in progress (including waiting ones), served and rejected."""
        with self.lock:
            counts = {"under_way": self.under_way, "served": self.served, "turned_away": self.turned_away}
        return {"max_workers": self.sandbox.max_workers, **counts}

    async def run(self, body: Mapping[str, Any], client: str = "") -> dict[str, Any]:
        """Answers a request; cancelling the task ends the program.

        Args:
            body: the request as a JSON object.
            client: the client; programs of different clients take turns.

        Raises:
            ValueError: the request is invalid; the message says why.
        """
        code, limits = _program(body), self._limits(body)
        try:
            result = await self.sandbox.run(code, limits=limits, key=client)
        except SandboxError as error:
            result = ExecResult(Status.TOOL_FAILURE, note=str(error))
        if result.status is Status.TOOL_FAILURE:
            return {"status": "SandboxError", "message": result.note, "run_result": None}
        timed_out = result.status is Status.TIMEOUT
        run = {
            "status": "TimeLimitExceeded" if timed_out else "Finished",
            "execution_time": result.wall_s,
            "return_code": None if timed_out else _return_code(result),
            "stdout": result.stdout,
            "stderr": result.stderr,
        }
        status = "Success" if result.status is Status.OK else "Failed"
        return {"status": status, "message": "", "compile_result": None, "run_result": run, "files": {}}

    def _limits(self, body: Mapping[str, Any]) -> Limits:
        wall_s = float(body.get("run_timeout") or 10.0)
        memory_mb = int(body.get("memory_limit_MB") or -1)
        try:
            return Limits(
                cpu_s=min(wall_s, self.most.cpu_s),
                wall_s=min(wall_s, self.most.wall_s),
                memory_mb=min(memory_mb if memory_mb > 0 else 1024, self.most.memory_mb),
            )
        except ConfigError as error:
            raise ValueError(str(error)) from error


def _program(body: Mapping[str, Any]) -> str:
    if not isinstance(body.get("code"), str):
        raise ValueError("code must be text")
    if body.get("language") != "python":
        raise ValueError(f"language must be 'python', not {body.get('language')!r}")
    stdin = str(body.get("stdin") or "").encode("utf-8", "surrogatepass")
    if stdin:
        return _STDIN.format(data=repr(stdin), code=body["code"])
    return f"{body['code']}\npass\n"  # as in SandboxFusion, a script does not show the value of its last expression


def _return_code(result: ExecResult) -> int:
    if result.status is Status.CRASHED:
        name = result.stderr.rstrip().rpartition(" ")[2]
        return -int(getattr(signal, name, 9)) if name.startswith("SIG") else -9
    return 0 if result.status is Status.OK else 1
