"""A server on the loopback that speaks as much of Ollama's wire format as one answer needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ModelServer(ThreadingHTTPServer):
    """Answers every request with `text`; None: never. `asked` is set once a request has arrived."""

    daemon_threads = True

    def __init__(self, text: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.text = text
        self.asked = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, ModelServer)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.set()
        if self.server.text is None:
            # Until the client hangs up.
            self.connection.recv(1)
            self.close_connection = True
            return
        message = {"role": "assistant", "content": self.server.text}
        answer = {"model": asked["model"], "message": message, "done": True, "prompt_eval_count": 3, "eval_count": 2}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing: a test says what matters."""


@contextmanager
def model_server(text: str | None) -> Iterator[ModelServer]:
    """A server for as long as the block runs."""
    with ModelServer(text) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
