"""HTTP answers with their trailer: an httpx transport that makes one request on a connection of its own.

Theory of operation. IPFS-Cluster streams listings, and when one breaks off it says so only in the trailer
`X-Stream-Error`, after a status of 200; the listing looks complete without it. h11, which httpx itself uses, reads
trailers and httpx drops them. This transport keeps them: `Response.extensions["trailers"]`.

The body is read whole before the answer is returned, and the connection is closed. Time-outs are the caller's cancel
scope. Rejected: asking another way (records of Cluster can be listed in no other).
"""

from __future__ import annotations

import ssl

import h11
import httpx
import trio

_READ_BYTES = 1 << 16


class TrailerTransport(httpx.AsyncBaseTransport):
    """One connection a request. `tls` is for https."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send, and read all. Raises httpx.TransportError."""
        await request.aread()
        try:
            stream = await self._connect(request.url)
            try:
                return await _converse(stream, request)
            finally:
                await trio.aclose_forcefully(stream)
        except (OSError, trio.BrokenResourceError) as error:
            raise httpx.NetworkError(str(error), request=request) from error
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error), request=request) from error

    async def _connect(self, url: httpx.URL) -> trio.abc.Stream:
        port = url.port or (443 if url.scheme == "https" else 80)
        if url.scheme == "https":
            return await trio.open_ssl_over_tcp_stream(url.host, port, https_compatible=True, ssl_context=self._tls)
        return await trio.open_tcp_stream(url.host, port)


async def _converse(stream: trio.abc.Stream, request: httpx.Request) -> httpx.Response:
    connection = h11.Connection(h11.CLIENT)

    async def send(event: h11.Event) -> None:
        data = connection.send(event)
        if data:
            await stream.send_all(data)

    await send(h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw))
    if request.content:
        await send(h11.Data(data=request.content))
    await send(h11.EndOfMessage())

    head: h11.Response | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None, "h11 ends no message that has not begun"
            trailers = httpx.Headers(list(event.headers))
            return httpx.Response(
                head.status_code,
                headers=list(head.headers),
                content=bytes(body),
                extensions={"trailers": trailers},
                request=request,
            )
