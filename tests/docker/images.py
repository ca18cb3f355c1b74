"""Images without a registry: a Dockerfile `FROM scratch`, and a root file system as a tar made here.

The stop signal is SIGKILL: a shell as process 1 ignores SIGTERM, and every stop would take ten seconds.
"""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

BUSYBOX = "s3vol-busybox:1"
CONTENT = "s3vol-content:1"
_DOCKERFILE = """FROM scratch
ADD rootfs.tar /
ENV PATH=/bin
STOPSIGNAL SIGKILL
CMD ["sleep", "1d"]
"""


def _entry(
    name: str, *, kind: bytes = tarfile.REGTYPE, mode: int = 0o755, link: str = "", size: int = 0
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, link, size
    info.mtime = 1_600_000_000
    return info


def _add_base(tar: tarfile.TarFile) -> None:
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is needed: tools/bootstrap test installs it"
    body = Path(busybox).read_bytes()
    for name in ("bin", "tmp", "etc", "root", "usr", "lib", "lib64", "proc", "sys", "dev", "run"):
        tar.addfile(_entry(name, kind=tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755))
    tar.addfile(_entry("bin/busybox", size=len(body)), io.BytesIO(body))
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            tar.addfile(_entry(f"bin/{applet}", kind=tarfile.SYMTYPE, link="busybox"))
    passwd = b"root:x:0:0::/root:/bin/sh\nwww:x:33:33::/:/bin/sh\n"
    tar.addfile(_entry("etc/passwd", mode=0o644, size=len(passwd)), io.BytesIO(passwd))


def _context(rootfs: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, body in (("Dockerfile", _DOCKERFILE.encode()), ("rootfs.tar", rootfs)):
            tar.addfile(_entry(name, mode=0o644, size=len(body)), io.BytesIO(body))
    return out.getvalue()


@functools.cache
def busybox_image() -> bytes:
    """Build context of BUSYBOX: a shell and its usual commands, static."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        _add_base(tar)
    return _context(out.getvalue())


def content_image() -> bytes:
    """Root file system of CONTENT: BUSYBOX with a tree at /data that has something of all that a tree can have.

    To be imported, not built: the builder drops extended attributes.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add_base(tar)
        for info, body in _content():
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


def _content() -> list[tuple[tarfile.TarInfo, bytes]]:
    top = _entry("data", kind=tarfile.DIRTYPE, mode=0o1770)
    top.uid = top.gid = 33
    owned = _entry("data/owned", mode=0o640)
    owned.uid, owned.gid = 33, 34
    tagged = _entry("data/tagged", mode=0o644)
    tagged.pax_headers = {"SCHILY.xattr.user.colour": "blue"}
    null = _entry("data/null", kind=tarfile.CHRTYPE, mode=0o666)
    null.devmajor, null.devminor = 1, 3
    return [
        (top, b""),
        (owned, b"owned\n"),
        (tagged, b"tagged\n"),
        (_entry("data/setuid", mode=0o4755), b"#!/bin/sh\n"),
        (_entry("data/first", mode=0o644), b"linked\n"),
        (_entry("data/second", kind=tarfile.LNKTYPE, mode=0o644, link="data/first"), b""),
        (_entry("data/third", kind=tarfile.LNKTYPE, mode=0o644, link="data/first"), b""),
        (_entry("data/deep", kind=tarfile.DIRTYPE, mode=0o2755), b""),
        (_entry("data/deep/empty", mode=0o600), b""),
        (_entry("data/deep/large", mode=0o644), bytes(range(256)) * (5 << 12)),
        (_entry("data/deep/up", kind=tarfile.SYMTYPE, link="../owned"), b""),
        (_entry("data/dangling", kind=tarfile.SYMTYPE, link="/there/is/nothing"), b""),
        (_entry("data/pipe", kind=tarfile.FIFOTYPE, mode=0o620), b""),
        (_entry("data/a name with blanks and \u00fcml\u00e4ute", mode=0o644), b"names\n"),
        (null, b""),
    ]
