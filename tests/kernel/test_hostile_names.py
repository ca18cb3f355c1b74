"""Names and objects that nobody expects, on a real MinIO through the kernel: shown, refused clearly, or left alone."""

from __future__ import annotations

import errno
import inspect
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.rig import Bucket

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

ASCII = [chr(code) for code in range(1, 128) if chr(code) != "/"]
WIDE = [chr(0x80 + low) for low in range(64)]  # every continuation byte
WIDE += [chr(lead << 6) for lead in range(3, 32)]  # every first byte of two, of three and of four
WIDE += [chr(max(lead << 12, 0x800)) for lead in range(16)]
WIDE += [chr(max(lead << 18, 0x10000)) for lead in range(5)]
ODD = [
    " lead", "trail ", "dot.", "...", ".hidden", "-rf", "~", "*", "\n", "\x01", "\x7f", "%2F", "%", "a+b", "<&>\"'",
    "\\", "é", "e\u0301", "a\u2028b", "\ufeff", "xl.meta", "part.1", "?versionId=null", "#", "x" * 255, "ß" * 127,
]  # fmt: skip


def spread() -> list[str]:
    """Names that together have every byte that UTF-8 text can have."""
    chars = ASCII + WIDE
    return ["n" + "".join(chars[at : at + 12]) + "m" for at in range(0, len(chars), 12)]


def refused(code: int, *calls: Callable[[], object]) -> None:
    """Each call fails with this errno."""
    for call in calls:
        with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is compared below
            call()
        assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code], inspect.getsource(call)


def test_every_name_that_is_text_is_kept_exactly_on_all_nodes_and_in_the_bucket(
    bucket: Bucket, mount: MountFactory
) -> None:
    names = spread() + ODD
    assert {byte for name in names for byte in name.encode()} >= set(range(1, 0xF5)) - {0x2F, 0xC0, 0xC1}
    here, there = mount("a").path, mount("b").path
    (here / "d").mkdir()
    for number, name in enumerate(names):
        (here / "d" / name).write_text(str(number))
    for name in ODD[:6]:
        (here / "d" / f"{name}d").mkdir()
        os.symlink(name, here / "d" / f"{name}d" / f"{name}l")
    (here / "d").rename(here / "e")  # the names are sources and targets of copies too
    wanted = sorted([*names, *(f"{name}d" for name in ODD[:6])])
    for path in (here, there):
        assert sorted(os.listdir(path / "e")) == wanted
        assert [(path / "e" / name).read_text() for name in names] == [str(n) for n in range(len(names))]
        assert [os.readlink(path / "e" / f"{name}d" / f"{name}l") for name in ODD[:6]] == ODD[:6]
    keys = {f"e/{name}" for name in names} | {"e/"} | {f"e/{name}d/" for name in ODD[:6]}
    assert set(bucket.all_keys()) == keys | {f"e/{name}d/{name}l" for name in ODD[:6]}
    for name in names:
        (there / "e" / name).unlink()
    assert len(os.listdir(there / "e")) == 6


def test_what_is_no_text_or_would_become_another_name_is_refused(bucket: Bucket, mount: MountFactory) -> None:
    here = os.fsencode(mount("a").path)
    (Path(os.fsdecode(here)) / "f").write_bytes(b"")
    wrong = [bytes([byte]) for byte in range(0x80, 0x100)]
    wrong += [b"a\xffb", b"\xc3(", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"x__XLDIR__"]
    for name in wrong:
        path = here + b"/" + name
        refused(errno.EINVAL, lambda path=path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)))  # type: ignore[misc]
        assert not os.path.lexists(path)
    path = here + b"/a\xffb"
    refused(
        errno.EINVAL,
        lambda: os.mkdir(path),
        lambda: os.symlink(b"x", path),
        lambda: os.mkfifo(path),
        lambda: os.link(here + b"/f", path),
        lambda: os.rename(here + b"/f", path),
    )
    assert bucket.all_keys() == ["f"]


@pytest.mark.parametrize("prefix", ["", "pre/fix/"])
def test_names_of_255_bytes_and_keys_of_1024_are_the_longest(bucket: Bucket, mount: MountFactory, prefix: str) -> None:
    here = mount("a", source=f"s3://{bucket.name}/{prefix}").path
    folder = here / ("d" * 246) / ("e" * 246) / ("f" * 246)
    folder.mkdir(parents=True)
    room = 1024 - len(prefix) - len(str(folder.relative_to(here))) - 1 - 100 - 1  # both slashes
    deepest = folder / ("g" * 100)
    deepest.mkdir()
    longest = deepest / ("ä" * (room // 2) + "x" * (room % 2))
    longest.write_bytes(b"at the end")
    (here / ("x" * 255)).write_bytes(b"")
    assert f"{prefix}{longest.relative_to(here)}" in bucket.all_keys()
    assert len(f"{prefix}{longest.relative_to(here)}".encode()) == 1024
    assert os.listdir(deepest) == [longest.name]
    over = Path(f"{longest}x")
    (here / "f").write_bytes(b"")
    (here / "g").mkdir()
    refused(
        errno.ENAMETOOLONG,
        lambda: over.write_bytes(b""),
        lambda: os.mkdir(deepest / ("m" * room)),  # its object ends in a slash
        lambda: os.symlink("x", over),
        lambda: os.link(here / "f", over),
        lambda: os.rename(here / "f", over),
        lambda: (here / ("x" * 256)).write_bytes(b""),
        lambda: (here / ("ä" * 128)).mkdir(),
        lambda: (here / ("x" * 247)).mkdir(),  # MinIO's own limit
        lambda: os.rename(here / ("d" * 246), here / "g" / ("h" * 246)),  # what is in it would be too deep
    )
    assert longest.read_bytes() == b"at the end"
    assert os.listdir(here / "g") == []


@pytest.mark.parametrize("prefix", ["", "pre/fix/"])
def test_the_conflict_copy_of_the_longest_name_fits(bucket: Bucket, mount: MountFactory, prefix: str) -> None:
    here = mount("a", source=f"s3://{bucket.name}/{prefix}").path
    folder = here / ("d" * 246) / ("e" * 246) / ("f" * 246)
    folder.mkdir(parents=True)
    folder /= "g" * (1024 - len(prefix) - len(str(folder.relative_to(here))) - 1 - 1 - 200)
    folder.mkdir()
    name = "n" * 200
    (folder / name).write_bytes(b"first")
    fd = os.open(folder / name, os.O_WRONLY)
    bucket.client.put_object(Bucket=bucket.name, Key=f"{prefix}{(folder / name).relative_to(here)}", Body=b"theirs")
    os.write(fd, b"ours!")
    refused(errno.ESTALE, lambda: os.close(fd))
    copies = [path for path in folder.iterdir() if path.name != name]
    assert [path.read_bytes() for path in copies] == [b"ours!"]


def test_foreign_objects_that_are_no_files_harm_nobody(bucket: Bucket, mount: MountFactory) -> None:
    def put(key: str, body: bytes = b"body", **metadata: str) -> None:
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=body, Metadata=metadata)

    put("marker/", b"with a body")
    put("marker/f")
    put("beside/f")
    put("beside")  # on MinIO it hides `beside/f` from listings
    put("d/octal", mode="0100640", mtime="1600000000")  # as rclone writes it
    put("d/decimal", mode=str(stat.S_IFREG | 0o640), mtime="1600000000.5")  # as s3fs does
    put("d/nonsense", mode="rwxr-x---", uid="-5", gid="many", mtime="yesterday")
    bucket.client.put_object(Bucket=bucket.name, Key="d/broken", Body=b"body", Metadata={"a&b!": "<", "mode": "33152"})
    put("links/a", b"b", mode=str(stat.S_IFLNK | 0o777))
    put("links/b", b"a", mode=str(stat.S_IFLNK | 0o777))
    put("links/self", b"self", mode=str(stat.S_IFLNK | 0o777))
    put("links/long", b"x" * 10_000, mode=str(stat.S_IFLNK | 0o777))
    put("links/empty", b"", mode=str(stat.S_IFLNK | 0o777))
    mounted = mount("a")
    here = mounted.path
    assert sorted(os.listdir(here)) == ["beside", "d", "links", "marker"]
    assert (here / "marker" / "f").read_bytes() == b"body"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (here / "d").iterdir()}
    assert modes == {"octal": 0o640, "decimal": 0o640, "nonsense": 0o644, "broken": 0o600}
    assert (here / "d" / "octal").stat().st_mtime == 1_600_000_000
    assert (here / "d" / "decimal").stat().st_mtime == 1_600_000_000.5
    assert all(path.read_bytes() == b"body" for path in (here / "d").iterdir())
    refused(errno.ELOOP, (here / "links" / "a").read_bytes, (here / "links" / "self").read_bytes)
    assert len(os.listdir(here / "links")) == 5
    refused(errno.ENAMETOOLONG, (here / "links" / "long").read_bytes)
    refused(errno.ENOENT, (here / "links" / "empty").read_bytes)
    for name in ("long", "empty"):
        (here / "links" / name).unlink()
    (here / "d").rename(here / "e")
    broken = bucket.client.head_object(Bucket=bucket.name, Key="e/broken")["Metadata"]
    assert broken["a&b!"] == "<"
    assert mounted.alive()


@pytest.mark.soak
def test_a_directory_of_ten_thousand_files_is_listed_whole_while_others_create_and_delete(
    bucket: Bucket, mount: MountFactory
) -> None:
    """About five minutes."""
    here, there = mount("a").path, mount("b").path
    (here / "d").mkdir()
    stay = [f"stay-{number:05}" for number in range(10_000)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: (here / "d" / name).write_bytes(name.encode()), stay))
    stop = threading.Event()

    def churn(root: Path, tag: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path = root / "d" / f"s{number % 7}-{tag}-{number:05}"  # before, between and behind the others
            path.write_bytes(b"soon gone")
            path.unlink()

    workers = [threading.Thread(target=churn, args=(root, tag)) for root, tag in ((here, "a"), (there, "b"))]
    for worker in workers:
        worker.start()
    try:
        for root in (here, there) * 3:
            found = os.listdir(root / "d")
            assert len(found) == len(set(found))
            assert [name for name in sorted(found) if name.startswith("stay-")] == stay
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert (there / "d" / stay[5000]).read_bytes() == stay[5000].encode()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: (here / "d" / name).unlink(), stay))
    (here / "d").rmdir()
    assert bucket.all_keys() == []
