"""pjdfstest, the suite of POSIX calls: 398 checks of what each call returns and changes, as root and as other users.

Its own summary is not enough: the names of what ran and of what failed are read from its output, and a suite that
dies in the middle has run only what it printed.
"""

from __future__ import annotations

import re
import tempfile
from functools import partial
from pathlib import Path

from tests.judges.base import Judge, Verdict, run
from tests.kernel.rig import tool

_CONFIG = """\
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
expected_failures = []
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""
_RESULT = re.compile(r"^(?P<name>\w+(?:::\w+)+)\s+(?P<verdict>ok|FAILED|skipped)\s*$", re.M)
_SAID_CHARS = 4000
_CALLS = (
    *("chmod", "chown", "ftruncate", "link", "mkdir", "mkfifo", "mknod", "open", "posix_fallocate"),
    *("rename", "rmdir", "symlink", "truncate", "unlink", "utimensat"),
)


def by_call() -> tuple[Judge, ...]:
    """All of it in parts, for file systems that die on the way: the checks of one call each."""
    return tuple(partial(pjdfstest, call=f"{call}::") for call in _CALLS)


def pjdfstest(folder: Path, *, call: str = "", timeout_s: float = 840.0) -> Verdict:
    """Run all of it, or of one call, in `folder`, which every user must be able to reach. Needs root."""
    work = folder / "pjd"  # short: the path of a socket has 108 bytes at most
    work.mkdir(mode=0o755)
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(_CONFIG)
        config.flush()
        done = run([tool("pjdfstest"), "-c", config.name, "-p", work, *filter(None, [call])], timeout_s=timeout_s)
    verdicts = {found["name"]: found["verdict"] for found in _RESULT.finditer(done.said)}
    verdicts = {name: verdict for name, verdict in verdicts.items() if name.startswith(call)}  # it filters by any part
    executed = frozenset(name for name, verdict in verdicts.items() if verdict != "skipped")
    failed = frozenset(name for name in executed if verdicts[name] == "FAILED")
    return Verdict(executed, failed, done.said[-_SAID_CHARS:])
