"""What the kernel does with a FUSE mount unless told otherwise is made for small local file systems.

* Readahead is 128 KiB: a sequential reader asks for an object in small pieces and waits for each. With 1 MiB the
  requests are as large as FUSE allows (max_pages 256), and the cache's own readahead sees the pattern at once.
* At most 12 background requests (readahead, direct I/O) are under way for the whole mount.

Both are files in sysfs. What may not be written (a container, a user that is not root) stays as it is: this is
speed, never correctness.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from s3vol.mounts import Mount

READAHEAD_KIB = 1024  # one request of the largest size
BACKGROUND = 64  # 8 downloads of 8 MiB are 64 requests of 1 MiB


def tune(mount: Mount) -> list[str]:
    """Raise the limits of a mount; returns what was set, for the log."""
    wanted = {
        Path(f"/sys/class/bdi/{mount.major}:{mount.minor}/read_ahead_kb"): READAHEAD_KIB,
        mount.connection / "max_background": BACKGROUND,
        mount.connection / "congestion_threshold": BACKGROUND * 3 // 4,  # the kernel's own proportion
    }
    done = []
    for path, value in wanted.items():
        with contextlib.suppress(OSError, ValueError):
            if int(path.read_text()) < value:
                path.write_text(str(value))
                done.append(f"{path.name}={value}")
    return done
