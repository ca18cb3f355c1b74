"""A peer of IPFS-Cluster, by its REST API: `Cluster` on httpx.

Theory of operation. Requests run on the event loop; each is bounded by its time-out, the wait for its turn included.
Changes of the pinset take turns: one at a time, and at least 50 ms from the end of one to the beginning of the next.
Peers tell each other of changes by messages that a slow reader drops: of 50 in a row the last was unseen for eight
seconds to minutes, of 44 a second all were seen within 26 ms (three peers on one machine).

A status of 200 is not believed where Cluster streams its answer: the trailer says whether it is whole (trailers.py).
`pin-update` carries over metadata and factors from the old pin and drops the new ones in silence, so they are refused
here. Redirects are not followed, and HTTP_PROXY is not read: the peer is on this machine or on its network.

Rejected: the IPFS proxy and the pinning service API (no metadata; both unauthenticated by default, and both
should be off).
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx
import trio

from s3vol.errors import Corrupt, Denied, NotFound, Rejected, S3volError, Unavailable, UsageError
from s3vol.store.ipfs.base import Peer, PeerStatus, Pin, PinOptions
from s3vol.store.ipfs.cid import Cid, of_text, text
from s3vol.store.ipfs.trailers import TrailerTransport

T = TypeVar("T")

PACE_S = 0.05
_ABSENT = "pin is not part of the pinset"

_KIND_BY_STATUS: dict[int, tuple[type[S3volError], str]] = {
    400: (Rejected, ""),
    401: (
        Denied,
        "Cluster's REST wants another user and password: check cluster-login=, or credentials= of a volume of Docker",
    ),
    403: (Denied, ""),
    404: (Rejected, "this is no REST API of IPFS-Cluster: check the option cluster="),
    405: (Rejected, "this is no REST API of IPFS-Cluster: check the option cluster="),
}


class ClusterPeer:
    """One peer. See `Cluster` for the contract."""

    def __init__(self, url: str, *, login: tuple[str, str] | None = None) -> None:
        """`url` is like http://127.0.0.1:9094; `login` user and password. Raises UsageError."""
        base = _base(url)
        self._url = str(base).rstrip("/")
        # Making a TLS context takes 30 ms and plain HTTP needs none.
        tls = ssl.create_default_context() if base.scheme == "https" else None
        auth = httpx.BasicAuth(*login) if login else None
        shared: dict[str, Any] = {"base_url": base, "auth": auth, "trust_env": False, "timeout": None}
        self._client = httpx.AsyncClient(**shared, verify=tls or False)
        self._streams = httpx.AsyncClient(**shared, transport=TrailerTransport(tls))
        # Guards the pace: held from the wait before a change of the pinset to its answer.
        self._turn = trio.Lock()
        self._next_change = -float("inf")

    @property
    def url(self) -> str:
        """The REST address, without credentials."""
        return self._url

    async def _bounded(self, what: str, timeout_s: float, work: Callable[[], Any]) -> Any:
        with trio.move_on_after(timeout_s):
            try:
                return await work()
            except httpx.InvalidURL as error:  # more than 64 KiB of query: metadata are no place for content
                raise Rejected(f"{what}: {error}") from error
            except httpx.NetworkError as error:
                raise Unavailable(
                    f"IPFS-Cluster at {self._url}: {what}: {error}; is it running, is the option cluster= its REST?"
                ) from error
            except httpx.HTTPError as error:
                raise Unavailable(f"{what}: {str(error) or type(error).__name__}") from error
        raise Unavailable(f"{what}: no answer from {self._url} within {timeout_s:g} s")

    async def _ask(self, method: str, path: str, timeout_s: float, query: Mapping[str, str] | None = None) -> Any:
        """The JSON value of one answer. Raises NotFound when a pin is not there."""
        what = f"{method} {path}"

        async def work() -> Any:
            answer = await self._client.request(method, path, params=query)
            _raise_for(answer, what)
            return _value(answer.content, what)

        return await self._bounded(what, timeout_s, work)

    async def _change(self, method: str, path: str, timeout_s: float, query: Mapping[str, str] | None = None) -> None:
        what = f"{method} {path}"

        async def work() -> None:
            async with self._turn:
                await trio.sleep_until(self._next_change)
                try:
                    answer = await self._client.request(method, path, params=query)
                finally:
                    self._next_change = trio.current_time() + PACE_S
            _raise_for(answer, what)

        await self._bounded(what, timeout_s, work)

    async def _stream(self, method: str, path: str, timeout_s: float) -> list[Any]:
        """The JSON values of a streamed answer, which is whole."""
        what = f"{method} {path}"

        async def work() -> list[Any]:
            answer = await self._streams.request(method, path)
            _raise_for(answer, what)
            broken = answer.extensions["trailers"].get("x-stream-error", "")
            if broken:
                raise Unavailable(f"{what}: broken off: {broken}")
            return [_value(line, what) for line in answer.content.splitlines()]

        values: list[Any] = await self._bounded(what, timeout_s, work)
        return values

    async def pin(self, cid: Cid, options: PinOptions, *, timeout_s: float) -> None:
        """Write the record of a CID. Raises NotFound when `options.update` is not in the pinset."""
        await self._change("POST", f"/pins/{text(cid)}", timeout_s, _query(options))

    async def unpin(self, cid: Cid, *, timeout_s: float) -> None:
        """Remove the record. One that is not there is success."""
        try:
            await self._change("DELETE", f"/pins/{text(cid)}", timeout_s)
        except NotFound:
            return

    async def record(self, cid: Cid, *, timeout_s: float) -> Pin | None:
        """The record as this peer has it now, None when it says 404."""
        try:
            return _pin(await self._ask("GET", f"/allocations/{text(cid)}", timeout_s))
        except NotFound:
            return None

    async def records(self, prefix: str, *, timeout_s: float) -> Sequence[Pin]:
        """All records whose name begins with `prefix`."""
        rows = await self._stream("GET", "/allocations?filter=pin", timeout_s)
        return [_pin(row) for row in rows if row["name"].startswith(prefix) and _is_ours(row["cid"])]

    async def status(self, cid: Cid, *, timeout_s: float) -> Sequence[PeerStatus]:
        """What each peer says of a pin."""
        answer = await self._ask("GET", f"/pins/{text(cid)}", timeout_s)
        return [
            PeerStatus(peer, row.get("peername", ""), row["status"], row.get("error", ""))
            for peer, row in answer["peer_map"].items()
        ]

    async def recover(self, *, timeout_s: float) -> None:
        """Let this peer try again what its Kubo could not do."""
        await self._stream("POST", "/pins/recover?local=true", timeout_s)

    async def identity(self, *, timeout_s: float) -> Peer:
        """The peer that is asked."""
        return _peer(await self._ask("GET", "/id", timeout_s))

    async def peers(self, *, timeout_s: float) -> Sequence[Peer]:
        """All peers that this one knows, itself included."""
        return [_peer(row) for row in await self._stream("GET", "/peers", timeout_s)]

    async def aclose(self) -> None:
        """Release connections."""
        await self._client.aclose()
        await self._streams.aclose()


def _base(url: str) -> httpx.URL:
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL:
        base = httpx.URL("")
    if base.scheme not in ("http", "https") or not base.host or base.userinfo or base.query:
        raise UsageError(
            f"cluster={url.rpartition('@')[2]}: give the REST address of a peer, like http://127.0.0.1:9094"
        )
    return base


def _query(options: PinOptions) -> dict[str, str]:
    if options.update is not None and options.metadata:
        raise Rejected(f"pin {options.name}: Cluster drops metadata that come with an update")
    query = {
        "name": options.name,
        "replication-min": str(options.replication_min),
        "replication-max": str(options.replication_max),
        **{f"meta-{key}": value for key, value in options.metadata.items()},
    }
    if options.allocations:
        query["user-allocations"] = ",".join(options.allocations)
    if options.update is not None:
        query["pin-update"] = text(options.update)
    return query


def _raise_for(answer: httpx.Response, what: str) -> None:
    if answer.is_success:
        return
    said = answer.text.strip()
    try:
        said = str(json.loads(said)["message"])
    except (ValueError, KeyError, TypeError):
        said = said[:200]
    if answer.status_code == 404 and _ABSENT in said:
        raise NotFound(f"{what}: {said}")
    kind, advice = _KIND_BY_STATUS.get(answer.status_code, (Unavailable, ""))
    if answer.is_redirect:
        kind, advice = Rejected, "it redirects elsewhere: check the option cluster="
    raise kind(f"{what}: {advice or said} ({answer.status_code})")


def _value(body: bytes, what: str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise Unavailable(f"{what}: the answer is cut off, or no JSON: {body[:80]!r}") from None


def _is_ours(word: str) -> bool:
    """False for a pin of somebody else, who may give it any name: it has another form of CID."""
    try:
        of_text(word)
    except Corrupt:
        return False
    return True


def _pin(row: Mapping[str, Any]) -> Pin:
    return Pin(
        cid=of_text(row["cid"]),
        name=row["name"],
        metadata=row.get("metadata") or {},
        replication_min=row["replication_factor_min"],
        replication_max=row["replication_factor_max"],
        allocations=tuple(row.get("allocations") or ()),
    )


def _peer(row: Mapping[str, Any]) -> Peer:
    kubo = row.get("ipfs") or {}
    return Peer(
        id=row["id"],
        name=row.get("peername", ""),
        version=row.get("version", ""),
        kubo_id="" if kubo.get("error") else kubo.get("id", ""),
        addresses=tuple(row.get("addresses") or ()),
        error=row.get("error", ""),
    )
