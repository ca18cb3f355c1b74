"""An HTTP server that answers what a test wrote down: for replies that no healthy MinIO gives.

Replies are taken in order, one per request; the last one is repeated. `requests` records what was asked.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LIST_START = (
    b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<EncodingType>url</EncodingType>"
)


@dataclass(frozen=True)
class Canned:
    """One reply. `cut` drops the connection after that many bytes of the body, whatever Content-Length says.

    A header of the empty string is left out.
    """

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


def s3_error(status: int, code: str, message: str = "because") -> Canned:
    """An S3 error with its XML body."""
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Canned(status, text.encode(), {"Content-Type": "application/xml"})


@dataclass
class CannedServer:
    """A running server on loopback."""

    endpoint: str
    requests: list[str]


@contextlib.contextmanager
def canned(*replies: Canned) -> Iterator[CannedServer]:
    """Serve these replies."""
    queue = list(replies)
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            requests.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            reply = queue.pop(0) if len(queue) > 1 else queue[0]
            self.send_response_only(reply.status)  # without Date: that is the test's to say
            for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body[: reply.cut])
            if reply.cut is not None:
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield CannedServer(f"http://127.0.0.1:{server.server_address[1]}", requests)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
