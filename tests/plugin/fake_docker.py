"""A dockerd's API, or a driver, as a table of answers behind a unix socket; what was asked is kept."""

from __future__ import annotations

import contextlib
import http.server
import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Answering(socketserver.ThreadingUnixStreamServer):
    """Answers `METHOD /path` from `answers`: a value is 200, a tuple is (status, value), None closes the connection."""

    daemon_threads = True

    def __init__(self, path: Path, answers: Mapping[str, Any]) -> None:
        super().__init__(str(path), _Handler)
        self.answers = dict(answers)
        self.asked: list[tuple[str, str]] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Answering

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        asked = f"{self.command} {self.path.partition('?')[0]}"
        self.server.asked.append((asked, body))
        name = json.loads(body).get("Name", "") if body else ""
        answer = self.server.answers.get(f"{asked} {name}".strip(), (404, {"message": "page not found"}))
        if answer is None:
            return
        status, value = answer if isinstance(answer, tuple) else (200, answer)
        content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def answering(path: Path, answers: Mapping[str, Any]) -> Iterator[Answering]:
    """Serve `answers` at `path` within this block."""
    server = Answering(path, answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        path.unlink(missing_ok=True)
