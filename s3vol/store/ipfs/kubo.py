"""A Kubo daemon, by its RPC: `Blocks` on ipfshttpclient.

Theory of operation. The library is synchronous, so each request runs in a worker thread; a thread that waits for a
daemon cannot be interrupted, and is left behind on cancellation. That is why every request carries its time-out three
times: for Kubo (`timeout=`: it gives up, and lets go of its locks), for the socket, and for the task that waits.

Two groups of threads, so that reads that wait for blocks of dead nodes never keep a pin or a register waiting: eight
fetch (more bring nothing: bitswap is at its best with eight in flight), four do everything else.

Of the library only the request layer is used, with one kept session. `connect` refuses every daemon of this decade by
its version number; commands by name lack half of the options; and only here a session can be told to ignore
HTTP_PROXY, which otherwise sends requests for this machine's loopback to a proxy.

Kubo reports some failures only in an HTTP trailer, which no client shows. So nothing is believed because of its
status alone: blocks are hashed by the caller, an import has to name its root and an empty PinErrorMsg, garbage
collection is asked to report errors in its stream.

Rejected: httpx for Kubo (a put of 1 MiB costs the same; it would be a second way to say the same); one `block/put` per
block (garbage collection takes them before they are pinned: 60 of 60 in a test).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import trio

from s3vol.errors import Corrupt, NotFound, S3volError, Unavailable, UsageError
from s3vol.store.ipfs import car
from s3vol.store.ipfs.base import Block, KuboInfo, RepoStat
from s3vol.store.ipfs.cid import Cid, of_text, text
from s3vol.store.ipfs.kubo_edge import ClientSync, TheirError, translate

T = TypeVar("T")

FETCHES = 8  # one 6 %, eight 93 %, 32 all of what bitswap brings from another node (three nodes on one machine)
COMMANDS = 4
CONNECT_S = 5.0
GRACE_S = 2.0  # a daemon that gave up in time still has to say so

_UPDATE_S = 10.0  # it reads what has just been stored; a block that is gone would be waited for in vain

_BOUNDARY = b"s3vol-car"


class _Session(ClientSync):  # type: ignore[misc] # the library has no types
    def _make_session(self) -> Any:
        session = super()._make_session()
        session.trust_env = False
        for adapter in session.adapters.values():
            adapter.init_poolmanager(1, FETCHES + COMMANDS)
        return session


def multiaddr(url: str) -> str:
    """The address in the library's notation. Raises UsageError."""
    parts = urlsplit(url)
    try:
        port = parts.port or 5001
    except ValueError:
        port = 0
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not port
        or parts.path.strip("/")
        or parts.username
    ):
        raise UsageError(f"kubo={url.rpartition('@')[2]}: give the address of Kubo's RPC, like http://127.0.0.1:5001")
    host = parts.hostname
    kind = "ip6" if ":" in host else "ip4" if host.replace(".", "").isdigit() else "dns"
    return f"/{kind}/{host}/tcp/{port}/{parts.scheme}"


class Kubo:
    """One daemon. See `Blocks` for the contract."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._session = _Session(multiaddr(url), "api/v0")
        self._session.open_session()
        self._fetches = trio.CapacityLimiter(FETCHES)
        self._commands = trio.CapacityLimiter(COMMANDS)

    @property
    def url(self) -> str:
        """The daemon in the user's words, without credentials."""
        return self._url

    async def _in_thread(self, work: Callable[[], T], what: str, limiter: trio.CapacityLimiter, timeout_s: float) -> T:
        def translated() -> T:
            try:
                return work()
            except (TheirError, OSError) as error:  # OSError: requests, while the body is read
                raise translate(error, what) from error

        with trio.move_on_after(timeout_s + GRACE_S):
            return await trio.to_thread.run_sync(translated, abandon_on_cancel=True, limiter=limiter)
        raise Unavailable(f"{what}: no answer from {self._url} within {timeout_s:g} s")

    def _request(
        self,
        command: str,
        *words: str,
        timeout_s: float,
        decoder: str = "json",
        options: Mapping[str, str] | None = None,
    ) -> Any:
        opts = {"timeout": f"{timeout_s * 1000:.0f}ms", **(options or {})}
        timeout = (CONNECT_S, timeout_s + GRACE_S)
        return self._session.request(command, words, opts=opts, decoder=decoder, timeout=timeout)

    async def _command(self, command: str, *words: str, timeout_s: float, **options: str) -> list[Any]:
        """The JSON values of the answer."""

        def work() -> list[Any]:
            answers: list[Any] = self._request(command, *words, timeout_s=timeout_s, options=options)
            return answers

        what = " ".join((command.strip("/"), *words))
        return await self._in_thread(work, what, self._commands, timeout_s)

    async def get(self, cid: Cid, *, timeout_s: float) -> bytes:
        """The block, not yet verified. Raises Unavailable."""
        name = text(cid)

        def work() -> bytes:
            body: bytes = self._request("/block/get", name, timeout_s=timeout_s, decoder="none")
            return body

        return await self._in_thread(work, f"block/get {name}", self._fetches, timeout_s)

    async def has(self, cid: Cid, *, timeout_s: float) -> bool:
        """True when this daemon holds the block itself."""
        try:
            await self._command("/block/stat", text(cid), timeout_s=timeout_s, offline="true")
        except NotFound:
            return False
        return True

    async def load(self, blocks: Sequence[Block], root: Cid, *, timeout_s: float, update: Cid | None = None) -> None:
        """Store blocks and pin `root`. Raises Unavailable when the DAG is incomplete.

        In one step, as dag/import does it, every block of the DAG is read. With `update` it is two steps, of which the
        second reads the difference only. Whatever that meets (a collection in between, no such pin) the one step mends.
        """
        if update is not None and await self._update(blocks, root, update, timeout_s):
            return
        what = f"dag/import {text(root)}"
        _check_import(await self._import(blocks, root, what, timeout_s, pin=True), root, what)

    async def _update(self, blocks: Sequence[Block], root: Cid, update: Cid, timeout_s: float) -> bool:
        try:
            await self._import(blocks, root, f"dag/import {text(root)}", timeout_s, pin=False)
            await self._command(
                "/pin/update", text(update), text(root), timeout_s=min(timeout_s, _UPDATE_S), unpin="false"
            )
        except S3volError:  # the import in one step says what is wrong, if anything is
            return False
        return True

    async def _import(self, blocks: Sequence[Block], root: Cid, what: str, timeout_s: float, *, pin: bool) -> list[Any]:
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY.decode()}"}
        opts = {"timeout": f"{timeout_s * 1000:.0f}ms", "pin-roots": "true" if pin else "false"}

        def work() -> list[Any]:
            answers: list[Any] = self._session.request(
                "/dag/import",
                opts=opts,
                decoder="json",
                data=_form(blocks, root),
                headers=headers,
                timeout=(CONNECT_S, timeout_s + GRACE_S),
            )
            return answers

        return await self._in_thread(work, what, self._commands, timeout_s)

    async def pin(self, cid: Cid, *, timeout_s: float) -> None:
        """Pin recursively; fetches what is missing."""
        await self._command("/pin/add", text(cid), timeout_s=timeout_s)

    async def unpin(self, cid: Cid, *, timeout_s: float) -> None:
        """Remove a recursive pin. One that is not there is success."""
        try:
            await self._command("/pin/rm", text(cid), timeout_s=timeout_s)
        except S3volError as error:
            if "not pinned or pinned indirectly" not in str(error):
                raise

    async def pins(self, *, timeout_s: float) -> frozenset[Cid]:
        """Roots of all recursive pins that have our forms. One JSON value: it comes whole or not at all."""
        (answer,) = await self._command("/pin/ls", timeout_s=timeout_s, type="recursive")
        return frozenset(_ours(answer.get("Keys") or {}))

    async def collect(self, *, timeout_s: float) -> int:
        """Garbage collection; returns how many blocks went."""
        answers = await self._command("/repo/gc", timeout_s=timeout_s, **{"stream-errors": "true"})
        errors = [answer["Error"] for answer in answers if answer.get("Error")]
        if errors:
            raise Unavailable(f"repo/gc: {errors[0]}; {len(errors)} errors in all")
        return len(answers)

    async def stat(self, *, timeout_s: float) -> RepoStat:
        """Size of the repository."""
        (answer,) = await self._command("/repo/stat", timeout_s=timeout_s)
        return RepoStat(int(answer["NumObjects"]), int(answer["RepoSize"]), int(answer["StorageMax"]))

    async def info(self, *, timeout_s: float) -> KuboInfo:
        """Peer id, version and settings."""
        (identity,) = await self._command("/id", timeout_s=timeout_s)
        (version,) = await self._command("/version", timeout_s=timeout_s)
        (config,) = await self._command("/config/show", timeout_s=timeout_s)
        return KuboInfo(identity["ID"], version["Version"], settings(config))

    async def aclose(self) -> None:
        """Close the connections; requests that were left behind end with an error nobody sees."""
        self._session.close_session()


def _form(blocks: Sequence[Block], root: Cid) -> Iterator[bytes]:
    yield b"--%b\r\n" % _BOUNDARY
    yield b'Content-Disposition: form-data; name="path"; filename="s3vol.car"\r\n'
    yield b"Content-Type: application/octet-stream\r\n\r\n"
    yield from car.archive(blocks, root)
    yield b"\r\n--%b--\r\n" % _BOUNDARY


def _check_import(answers: Sequence[Any], root: Cid, what: str) -> None:
    said = [answer["Root"] for answer in answers if answer.get("Root")]
    errors = [row["PinErrorMsg"] for row in said if row.get("PinErrorMsg")]
    if errors:
        raise Unavailable(f"{what}: stored, but not pinned: {errors[0]}")
    if text(root) not in [row["Cid"]["/"] for row in said]:
        raise Unavailable(f"{what}: Kubo did not say that it pinned the root")


def _ours(names: Mapping[str, Any]) -> Iterator[Cid]:
    for name in names:
        try:
            yield of_text(name)
        except Corrupt:  # a pin of somebody else: another form of CID
            continue


def settings(config: Mapping[str, Any]) -> dict[str, str]:
    """What `Blocks.info` shows of a daemon's configuration (`ipfs config show`)."""
    datastore = config.get("Datastore", {})
    blocks = _blocks_store(datastore.get("Spec", {}))
    addresses = config.get("Addresses", {})
    return {
        "datastore": str(blocks.get("type", "")),
        "sync": json.dumps(bool(blocks.get("sync"))) if blocks.get("type") == "flatfs" else "",
        "storage_max": str(datastore.get("StorageMax", "")),
        "gc_period": str(datastore.get("GCPeriod", "")),
        "api_authorizations": json.dumps(bool(config.get("API", {}).get("Authorizations"))),
        "api": _joined(addresses.get("API")),
        "gateway": _joined(addresses.get("Gateway")),
        "routing": str(config.get("Routing", {}).get("Type") or ""),
    }


def _blocks_store(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The store below `/blocks`, without the wrappers that measure it."""
    for mount in spec.get("mounts", ()):
        if mount.get("mountpoint") == "/blocks":
            return _blocks_store(mount)
    child = spec.get("child")
    return _blocks_store(child) if child else spec


def _joined(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value or "")
