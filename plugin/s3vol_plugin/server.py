"""waitress on a unix socket: a task that may end without a reply, threads as they are needed, an end on demand.

Theory of operation. waitress reads requests in a thread of its own and hands each to a thread of its pool. Three
things differ here. An exception that leaves the application, and a request that is no HTTP, end the connection
without a byte, where waitress would answer with a status: to dockerd every status but 200 says "there is no such
volume" (`http`). The pool grows, for its threads only wait, and no question may stand behind a Mount that takes 100
s. And a connection is never closed for being idle: dockerd keeps connections, and a request that meets the end of
one is repeated without its body.

Rejected: a server of our own over h11 (chunked bodies, pipelining and limits, all written again), and asyncio
servers (a second loop, and handlers that can block it).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import UnixWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.utilities import RequestEntityTooLarge

from s3vol.errors import UsageError

BODY_MAX_BYTES = 1 << 20
_THREADS_MAX = 512  # a call that waits costs a thread; dockerd starts hundreds of containers at once after a boot
_IDLE_MAX_S = 10 * 365 * 86400
_FAREWELL_S = 5
_LISTEN_FD = 3  # sd_listen_fds(3)

log = logging.getLogger(__name__)


class NoReply(Exception):
    """Raised by the application: close the connection without a byte."""


class _Task(WSGITask):
    def service(self) -> None:
        """As waitress does it, but what the application raises closes the connection."""
        try:
            super().service()
        except Exception as error:
            if not isinstance(error, NoReply):
                log.exception("unexpected failure; the connection is closed")
            self.wrote_header = True  # nothing is sent in its place
            self.close_on_finish = True


class _ErrorTask(ErrorTask):
    def service(self) -> None:
        """A request that is too large gets its status, one that is no HTTP gets nothing."""
        error: object = getattr(self.request, "error", None)  # not in the stubs
        if isinstance(error, RequestEntityTooLarge):
            super().service()
        else:
            self.close_on_finish = True


class _Channel(HTTPChannel):
    task_class = _Task
    error_task_class = _ErrorTask


class _Threads(ThreadedTaskDispatcher):
    """As many threads as there are calls at a time, up to a bound, instead of a fixed number that a slow call holds."""

    def add_task(self, task: Any) -> None:
        """Called by the reading thread, and by a worker for what came behind its request."""
        with self.lock:
            wanted = min(self.active_count + len(self.queue) + 1, _THREADS_MAX)
            more = wanted > len(self.threads)
        if more:
            self.set_thread_count(wanted)
        super().add_task(task)


Application = Callable[..., Any]  # WSGI


class Server:
    """waitress on a listening socket, in a thread of its own."""

    def __init__(self, app: Application, listener: socket.socket) -> None:
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of the moment in which a thread starts
        self._map: dict[int, Any] = {}
        self._threads = _Threads()
        settings = Adjustments(
            sockets=[listener],
            max_request_body_size=BODY_MAX_BYTES,
            channel_timeout=_IDLE_MAX_S,
            channel_request_lookahead=1,  # goes on reading during a call, which is how a hang-up is noticed
            connection_limit=_THREADS_MAX,
            ident="s3vol",
            threads=1,
            log_socket_errors=False,  # a client that went away is no news
        )
        info = (listener.family, listener.type, listener.proto, listener.getsockname())
        self._server = UnixWSGIServer(app, self._map, True, listener, self._threads, settings, info, bind_socket=False)
        self._server.channel_class = _Channel
        self._trigger: Any = self._server.trigger  # its type is wrong in the stubs
        self._thread = threading.Thread(target=self._server.run, name="s3vol-http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Accept no more, let calls that are being answered end for a moment, close all. Blocks: call in a thread."""
        self._trigger.pull_trigger(self._deafen)
        self._threads.shutdown(timeout=_FAREWELL_S)
        self._trigger.pull_trigger(self._close)
        self._thread.join(_FAREWELL_S)
        self._trigger.close()

    def _deafen(self) -> None:
        self._server.accepting = False

    def _close(self) -> None:
        """In the reading thread. The trigger stays open: whoever pulled it may not have returned yet."""
        for item in [item for item in self._map.values() if item not in (self._trigger, self._server)]:
            item.close()
        wasyncore.dispatcher.close(self._server)  # its own close() would close the trigger
        self._map.clear()


@contextlib.contextmanager
def listening(path: Path, environment: Mapping[str, str]) -> Iterator[socket.socket]:
    """The socket that systemd passed to us, or one at `path`: mode 0600 in a directory of 0700, unlinked at the end.

    Raises UsageError. To be called before there are threads: it sets the umask for a moment.
    """
    inherited = _inherited(environment)
    if inherited is not None:
        with inherited:
            yield inherited
        return
    with _bound(path) as listener:
        made = path.stat()
        try:
            yield listener
        finally:  # a socket file without a process costs dockerd 15 s at each question; but another's is not ours
            with contextlib.suppress(OSError):
                now = path.stat()
                if (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
                    path.unlink()


def _inherited(environment: Mapping[str, str]) -> socket.socket | None:
    """sd_listen_fds(3): descriptors from 3 on, if they are meant for this process."""
    if environment.get("LISTEN_PID") != str(os.getpid()) or environment.get("LISTEN_FDS", "0") == "0":
        return None
    os.set_inheritable(_LISTEN_FD, False)
    listener = socket.socket(fileno=_LISTEN_FD)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM:
        raise UsageError("LISTEN_FDS: descriptor 3 is not a unix stream socket; use ListenStream=/run/docker/plugins/…")
    return listener


def _bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(_THREADS_MAX)
    except OSError as error:
        listener.close()
        raise UsageError(f"socket {path}: {error.strerror or error}; set `socket`") from None
    return listener
