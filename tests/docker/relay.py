"""A TCP relay from a node's network namespace to a server on this machine's loopback.

Run as `python -m tests.docker.relay PID ADDRESS PORT TARGET`: it listens on ADDRESS:PORT in the network namespace of
PID and connects to 127.0.0.1:TARGET in its own. So one MinIO serves nodes that cannot reach this machine otherwise, and
a test cuts a node off by ending its relay (refused) or by SIGSTOP (silence).
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys

import trio

_PIECE_BYTES = 256 << 10
_CLONE_NEWNET = 0x40000000
_BACKLOG = 128


def listen_in(pid: int, address: str, port: int) -> socket.socket:
    """A listening socket that belongs to the network namespace of a process. Only for a program of one thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if libc.setns(there, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    try:
        return socket.create_server((address, port), backlog=_BACKLOG)
    finally:
        libc.setns(home, _CLONE_NEWNET)


async def _pump(source: trio.SocketStream, target: trio.SocketStream) -> None:
    async for piece in source:
        await target.send_all(piece)
    await target.send_eof()


async def _serve(listener: socket.socket, target: int) -> None:
    async def handle(near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream("127.0.0.1", target)
            async with near, far, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, near, far)
                nursery.start_soon(_pump, far, near)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            await near.aclose()

    await trio.serve_listeners(handle, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])


def main() -> None:
    """Listen, say so, relay until killed."""
    pid, address, port, target = sys.argv[1:]
    listener = listen_in(int(pid), address, int(port))
    listener.setblocking(False)
    print("up", flush=True)
    trio.run(_serve, listener, int(target))


if __name__ == "__main__":
    main()
