"""A slow network: a TCP relay on loopback that lets so many bytes per second pass, each way."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

_PIECE_BYTES = 64 << 10


@contextlib.contextmanager
def throttled(port: int, *, bytes_per_s: int) -> Iterator[str]:
    """Relay to `port`; yields the endpoint of the slow side."""
    listener = socket.create_server(("127.0.0.1", 0))
    peers: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                time.sleep(len(data) / bytes_per_s)  # the pace itself is what is simulated
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE_BYTES)
                far = socket.create_connection(("127.0.0.1", port))
                peers.extend((near, far))
                for ends in ((near, far), (far, near)):
                    threads.append(threading.Thread(target=pump, args=ends))
                    threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for peer in peers:
            peer.close()
        listener.close()
