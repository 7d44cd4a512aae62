"""Shows runs while they train: the page on the loopback address, which polls for new data every few seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from gtpo.errors import ConfigError, DataError
from gtpo.report.data import pack, run_document
from gtpo.report.page import header, page
from gtpo.run_directory import RunFiles, distinct_names

ADDRESS = "127.0.0.1"


def serve(runs: Sequence[str | Path], port: int = 0) -> ThreadingHTTPServer:
    """A server for the page; `serve_forever` runs it. `server_address` has the port.

    It listens on the loopback address only and refuses requests for other host names, so that a web page elsewhere
    can't reach it through a host name that resolves to this machine.

    Args:
        runs: run directories.
        port: the port; 0 takes a free one.

    Raises:
        ConfigError: the port is in use.
        DataError: a directory is not a run's.
    """
    files = [RunFiles(run) for run in runs]
    try:
        return ThreadingHTTPServer((ADDRESS, port), partial(_Handler, files))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"port {port}: {error}; give another --port, or 0 for a free one") from error


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, files: Sequence[RunFiles], *args: Any) -> None:
        self.files = files
        super().__init__(*args)

    def do_GET(self) -> None:
        """Send the page, the metrics, or the rollouts of a step."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in (ADDRESS, "localhost"):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "only this machine may use this server")
            return
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            if url.path == "/":
                self._send(HTTPStatus.OK, "text/html", page({**header(), "live": True, "runs": self._runs()}))
            elif url.path == "/runs":
                if query.get("stamps") == ",".join(files.stamp() for files in self.files):
                    self._send(HTTPStatus.NO_CONTENT, "application/json", "")
                else:
                    self._send(HTTPStatus.OK, "application/json", json.dumps(self._runs()))
            elif url.path == "/step":
                rows = self.files[int(query["run"])].rollouts(int(query["step"]))
                self._send(HTTPStatus.OK, "text/plain", pack(rows))
            else:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", "nothing here")
        except (DataError, KeyError, ValueError, IndexError) as error:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", str(error))

    def _runs(self) -> list[dict[str, Any]]:
        documents = [run_document(files, packed=False) for files in self.files]
        return [{**one, "name": name} for one, name in zip(documents, distinct_names(self.files), strict=True)]

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, to keep the terminal free for the run."""
