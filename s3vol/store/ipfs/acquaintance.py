"""Clients of other nodes' Cluster peers, and whether the login may be shown to them.

Theory of operation. With `heads=peers` a node asks the peers whose URLs the registers name, and anybody who can write
to the pinset can write a register. A login is sent as it is, so without a look at the URL it would go to whoever is
named there. The one peer that the user has named says at which addresses the peers of the cluster are, and they have
proved to it that they know the cluster's secret. So the login goes to those addresses only, and never by plain HTTP
where the user's own way is HTTPS. A peer that is left out is not asked at all: its register is then read at our own.

Ports are not compared: several peers may be on one machine. Without a login there is nothing to keep, and all are
asked.

Rejected: an option with the URLs of all peers (each new node would have to be told to all others).
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import trio

from s3vol.errors import S3volError
from s3vol.store.ipfs.base import Cluster

_TIMEOUT_S = 5.0  # our own peer asks all others for it


class Acquaintance:
    """See the module's docstring. `own` is the peer that the user has named; `make` makes a client for a URL."""

    def __init__(self, own: Cluster, make: Callable[[str], Cluster], *, has_login: bool) -> None:
        self._own = own
        self._make = make
        self._has_login = has_login

    async def meet(self, url: str) -> Cluster | None:
        """A client for another peer; None when it is not to be asked. Raises nothing."""
        try:
            if self._has_login and not await self._is_peer(url):
                return None
            return self._make(url)
        except (S3volError, OSError, ValueError):  # no answer, no such name, no URL: not asked, this time
            return None

    async def _is_peer(self, url: str) -> bool:
        parts = urlsplit(url)
        if urlsplit(self._own.url).scheme == "https" != parts.scheme or not parts.hostname:
            return False
        peers = await self._own.peers(timeout_s=_TIMEOUT_S)
        known = {host_of(address) for peer in peers for address in peer.addresses} - {""}
        if parts.hostname in known:
            return True
        with trio.move_on_after(_TIMEOUT_S):
            found = await trio.socket.getaddrinfo(parts.hostname, None)
            return any(row[4][0] in known for row in found)
        return False


def host_of(address: str) -> str:
    """The host of a multiaddress such as /ip4/10.0.0.1/tcp/9096/p2p/ID; "" for one of another form."""
    words = address.split("/")
    return words[2].lower() if len(words) > 2 and words[1] in ("ip4", "ip6", "dns", "dns4", "dns6") else ""
