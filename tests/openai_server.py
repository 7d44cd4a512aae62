"""A server of OpenAI's completions API for tests, scripted, which can be killed and started again on its port."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class CompletionServer:
    """Answers with what `script(body)` returns: a status and a JSON object.

    Args:
        script: called with the body of each POST.
        max_model_len: what it says of its model; None says nothing.
    """

    def __init__(self, script, max_model_len=512):
        self.script, self.max_model_len = script, max_model_len
        self.bodies, self.port, self.server = [], 0, None
        self.adapters = {"adapter"}
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.answer(
                    200,
                    {
                        "data": [
                            {"id": "base", "max_model_len": outer.max_model_len},
                            {"id": "other"},
                            *({"id": name, "max_model_len": None, "parent": "base"} for name in outer.adapters),
                        ]
                    },
                )

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append((self.path, body, dict(self.headers)))
                status, document = outer.script(body)
                if outer.server is None:  # a killed server says nothing more
                    self.close_connection = True
                else:
                    self.answer(status, document)

            def answer(self, status, document):
                data = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 1024

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self):
        if self.server is not None:
            server, self.server = self.server, None
            server.shutdown()
            server.server_close()
            self.thread.join()


def adapter_server(answer):
    """A server that stands for vLLM: it knows the adapters that it was given, and none at first.

    Args:
        answer: called with the body of a request for a completion; returns the ids of the turn.
    """

    def script(body):
        if "lora_name" in body:
            (server.adapters.add if "lora_path" in body else server.adapters.discard)(body["lora_name"])
            return 200, {}
        if body["model"] not in server.adapters:
            return 404, {"error": "no such model"}
        ids = answer(body)[: body["max_tokens"]]
        logprobs = {"token_logprobs": [-1.0] * len(ids)}
        return 200, {"choices": [{"finish_reason": "stop", "token_ids": ids, "logprobs": logprobs}]}

    server = CompletionServer(script)
    server.adapters = set()
    return server
