"""A server on this machine that speaks SandboxFusion's API: for tests only, it confines nothing.

It follows `sandbox/runners/base.py` of that project: a soft address-space and stack limit, the first MiB of each
stream, decoded all or nothing, and "Finished" for whatever ended by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEPT_BYTES = 1 << 20
_LIMITED = 'ulimit -S -v "$1" -d "$1" 2>/dev/null; ulimit -S -s "$1" 2>/dev/null; shift; exec "$@"'


class FusionServer(ThreadingHTTPServer):
    """Runs each program in a plain subprocess; each entry of `spoilers` spoils one request, first come first served.

    A spoiler is an HTTP status, "hang-up", "slow", any other text as the body of an answer, or a dictionary as its
    JSON. None spoils nothing.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.spoilers: list[int | str | dict[str, Any] | None] = []
        self.requests: list[dict[str, Any]] = []
        self.pings = self.active = self.most_active = 0
        self.lock = threading.Lock()

    def run(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request that nothing spoils."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "script.py")
            with open(path, "w", encoding="ascii") as file:
                file.write(body["code"])
            size = str(body["memory_limit_MB"] << 10)
            started = time.monotonic()
            process = subprocess.Popen(
                ["/bin/sh", "-c", _LIMITED, "sh", size, sys.executable, path],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            kept = {stream: bytearray() for stream in (process.stdout, process.stderr)}
            drains = [threading.Thread(target=_drain, args=pair) for pair in kept.items()]
            for drain in drains:
                drain.start()
            process.stdin.close()
            try:
                process.wait(body["run_timeout"])
                run = {"status": "Finished", "return_code": process.returncode}
            except subprocess.TimeoutExpired:
                run = {"status": "TimeLimitExceeded", "return_code": None}
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for drain in drains:
                drain.join()
            for stream in kept:
                stream.close()
            run["execution_time"] = time.monotonic() - started
            run["stdout"], run["stderr"] = (_decode(bytes(data)) for data in kept.values())
        status = "Success" if run["return_code"] == 0 else "Failed"
        return {"status": status, "message": "", "compile_result": None, "run_result": run, "files": {}}


class Handler(BaseHTTPRequestHandler):
    server: FusionServer

    def do_GET(self):
        self.server.pings += 1
        self.reply(*((200, '"pong"') if self.path == "/v1/ping" else (404, '{"detail":"Not Found"}')))

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append({"path": self.path, "key": self.headers["X-Key"], **body})
            spoiler = server.spoilers.pop(0) if server.spoilers else None
            server.active += 1
            server.most_active = max(server.active, server.most_active)
        try:
            outcome = self.outcome(spoiler, body)
        finally:
            with server.lock:
                server.active -= 1
        if outcome is None:
            self.close_connection = True
        else:
            self.reply(*outcome)

    def outcome(self, spoiler, body) -> tuple[int, str] | None:
        if self.path != "/run_code":
            return 404, '{"detail":"Not Found"}'
        if spoiler == "hang-up":
            return None
        if spoiler == "slow":
            time.sleep(1.0)
            return None
        if isinstance(spoiler, int):
            return spoiler, "no such thing"
        if isinstance(spoiler, str):
            return 200, spoiler
        return 200, json.dumps(self.server.run(body) if spoiler is None else spoiler)

    def reply(self, status: int, text: str):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def answer(return_code: int | None = 0, stdout: str = "", stderr: str = "", **changes: Any) -> dict[str, Any]:
    """An answer as a spoiler; `changes` are made to its `run_result`."""
    run = {"status": "Finished", "execution_time": 0.5, "return_code": return_code, "stdout": stdout, "stderr": stderr}
    return {"status": "Failed" if return_code else "Success", "message": "", "run_result": {**run, **changes}}


def _drain(stream, kept: bytearray) -> None:
    while data := os.read(stream.fileno(), 1 << 16):
        kept += data[: KEPT_BYTES - len(kept)]


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return f"[DecodeError] {error}"
