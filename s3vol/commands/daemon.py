"""The mount process in the background, and the parent that waits until it serves.

Theory of operation. The parent forks before any thread or event loop exists. The child leaves the terminal's session
and reports through a pipe: one JSON object, either `{"ready": "..."}` or `{"error": "...", "status": 2}`. The parent
prints it and ends with that status. Until it is ready the child keeps the terminal's stderr; then its standard streams
go to the log file. When the child dies without a word the parent says how. A parent that is interrupted, terminated or
hung up takes the child along: nothing is mounted after the command has ended.

The child is a copy of the parent: there is no second command line or environment in which a credential could stand.

Rejected: starting a second program (it needs the options again, in argv, where everybody can read them), and a double
fork (a session leader without a terminal cannot get one by accident: everything is opened with O_NOCTTY or is no tty).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from s3vol.errors import S3volError, UsageError

FAILED, USAGE = 1, 2
_FDS_MAX = 65536  # closing every number up to a limit of 2**30 would take a minute
_INTERRUPT_S = 10.0
_PATHS = (
    *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("S3VOL_RUNTIME_DIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"),
)

log = logging.getLogger("s3vol.mount")

Ready = Callable[[str, Path | None], None]
"""Say that the mount serves: a line for the user, and the log file that stderr goes to from now on."""


def in_foreground(work: Callable[[Ready], int]) -> int:
    """Run `work` here."""

    return work(lambda line, file: _say(line))


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads our output: no reason to end
        print(line, flush=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the caller has closed it
            with contextlib.suppress(OSError):
                stream.flush()


def _open_streams() -> None:
    """Put something in the place of standard streams that the caller has closed: a pipe must not get their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_NOCTTY)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


class _Pipe:
    """The child's end: takes one message. Closed after it, and then it must not be written to: the number is reused."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.told = False

    def tell(self, **message: object) -> None:
        """Send the message if it is the first; a failure long after the mount served is in the log only."""
        if self.told:
            return
        self.told = True
        with contextlib.suppress(OSError):  # the parent was killed
            os.write(self.fd, json.dumps(message).encode())
        os.close(self.fd)


def _stay_here() -> None:
    """Make paths of the environment absolute: the mount process works in `/`, and reads these files again later."""
    for name in _PATHS:
        path = os.environ.get(name)
        if path and not path.startswith(("/", "~", "$")):  # botocore expands the last two
            os.environ[name] = os.path.abspath(path)


def in_background(work: Callable[[Ready], int]) -> NoReturn:
    """Run `work` in a child; end with 0 when it is ready, else with the status of its failure.

    The end is at once: taking hundreds of modules apart takes 0.1 s, and who called waits for a mount that serves.
    """
    _open_streams()
    _stay_here()
    read_end, write_end = os.pipe()
    _flush()
    child = os.fork()
    if child == 0:
        os._exit(_child(work, _Pipe(write_end)))
    os.close(write_end)
    status = _wait(child, read_end)
    _flush()
    os._exit(status)


def _child(work: Callable[[Ready], int], pipe: _Pipe) -> int:
    """All of the child's life; returns its exit status, whatever happens."""
    try:
        os.setsid()
        os.chdir("/")
        _close_others(pipe.fd)

        def ready(line: str, file: Path | None) -> None:
            _redirect(file)
            pipe.tell(ready=line)

        return work(ready)
    except S3volError as error:
        if pipe.told:  # else the parent says it
            log.error("%s", error)
        status = USAGE if isinstance(error, UsageError) else FAILED
        pipe.tell(error=str(error), status=status)
        return status
    except BaseException as error:
        log.critical("the mount process failed", exc_info=error)
        line = traceback.format_exception_only(error)[-1].strip()
        pipe.tell(error=f"unexpected failure of the mount process: {line}", status=FAILED)
        return FAILED
    finally:
        logging.shutdown()
        _flush()


def _close_others(pipe: int) -> None:
    """Close what the caller left open: somebody may wait for the end of one of those pipes."""
    os.closerange(3, pipe)
    os.closerange(pipe + 1, min(os.sysconf("SC_OPEN_MAX"), _FDS_MAX))


def _redirect(file: Path | None) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_NOCTTY)
    sink = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY, 0o600) if file else null
    _flush()
    for target, source in ((0, null), (1, sink), (2, sink)):
        os.dup2(source, target)
    for opened in {null, sink} - {0, 1, 2}:
        os.close(opened)


def _wait(child: int, pipe: int) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)  # which raises KeyboardInterrupt
    try:
        with open(pipe, "rb") as file:
            message = file.read()
    except KeyboardInterrupt:
        _end(child)
        raise
    if not message:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        print(f"s3vol: the mount process ended {how} before it served", file=sys.stderr)
        return FAILED
    told = json.loads(message)
    if "ready" in told:
        _say(told["ready"])
        return 0
    os.waitpid(child, 0)  # when this returns, its cache directory and mount point are free again
    print(f"s3vol: {told['error']}", file=sys.stderr)
    return int(told["status"])


def _end(child: int) -> None:
    """SIGTERM, and SIGKILL if that is not heard."""
    os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + _INTERRUPT_S
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
