"""What may not be: names that are paths, options that are none, missing credentials, a full disk.

dockerd passes on any name that the user gives (its own rule holds for the local driver only), so names are asked at the
driver's socket, where whatever dockerd may pass arrives. Each refusal is one line that names what was wrong, and leaves
nothing behind, neither on this machine nor in the bucket.
"""

from __future__ import annotations

import json
import random
import threading

import pytest

from tests.docker.images import BUSYBOX
from tests.docker.site import Site, fresh, within
from tests.docker.tap import post
from tests.support.minio import SECRET_KEY, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.minio, pytest.mark.kernel]

COUNT = 200
_PLAIN = r"""
../../x .. . / /abs a/b a/../b // ~ -rf --help $(reboot) `id` ;ls a;b a|b a&b ' " %2e%2e a%00 \ a\b * ? [a] {a}
.hidden _x s3vol:x a:b a=b a,b a#b a@b con/../aux .s3vol .s3vol/volumes/x volumes/../../x x/ /x ./x <b> &amp;
"""
_STRANGE = [
    " ",
    "a b",
    "a\nb",
    "a\x00b",
    "\t",
    "x" * 129,
    "x" * 300,
    "x" * 100_000,
    "a" * 128 + "/",
    "\x7f",
    "\x1b[31m",
]
_STRANGE += ["\u00fc", "\u202e", "\ufeff", "\U0001f600", "a\u0301", "\ud800", "x\r\n\r\nGET / HTTP/1.1"]


def names() -> list[str]:
    """200 names that are none: the well-known ones, and random ones of the same characters."""
    chance = random.Random(4)
    alphabet = "ab./\\\n\0 -~$%*?'\"\u00e9\u202e\U0001f600"
    found = [*_PLAIN.split(), *_STRANGE]
    while len(found) < COUNT:
        name = "".join(chance.choice(alphabet) for _ in range(chance.randint(1, 40)))
        if not name.isalnum() and name not in found and not set(name[1:]) <= set("ab.-"):
            found.append(name)
    return found


def everything(site: Site) -> tuple[list[str], list[str]]:
    """Keys in the bucket, and paths of the driver's state: what a refusal may not change.

    What the driver writes by itself all the time is left out: its copy of the registry, and that it is alive.
    """
    pages = site.bucket.client.list_objects_v2(Bucket=site.bucket.name)
    keys = [row["Key"] for row in pages.get("Contents", []) if "/nodes/" not in row["Key"]]
    state = site.node.folder / "lib/s3vol"
    return keys, sorted(str(path) for path in state.rglob("*") if path.stem != "registry")


def test_two_hundred_hostile_names_are_refused_and_leave_nothing(site: Site) -> None:
    before = everything(site)
    for name in names():
        for verb, more in (("Create", {"Opts": {}}), ("Mount", {"ID": "a"}), ("Remove", {})):
            said = site.plugin.ask(verb, {"Name": name, **more})["Err"]
            assert said, (verb, name)
            assert "\n" not in said, (verb, name)
            assert len(said) < 1000, (verb, name)
        assert site.plugin.ask("Get", {"Name": name}) == {"Err": "no such volume"}
        assert site.plugin.ask("Unmount", {"Name": name, "ID": "a"}) == {"Err": ""}
    assert everything(site) == before
    assert site.plugin.mounted() == []


def test_the_docker_client_shows_the_refusal(site: Site) -> None:
    for name in ("../../x", "/abs", "x" * 300, ".hidden", "a b"):
        assert "name" in site.docker.refused("volume", "create", "-d", "s3vol", name), name


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b"1",
        b'{"Name": 1}',
        b'{"Name": ["x"]}',
        b'{"Name": "x", "Opts": 5}',
        b"\xff\xfe",
        b"[" * 9999,
    ],
)
def test_what_is_no_request_is_refused_and_the_driver_lives(site: Site, body: bytes) -> None:
    status, answer = post(site.plugin.socket, "VolumeDriver.Create", body)
    assert (status, bool(json.loads(answer)["Err"])) == (200, True)
    assert site.plugin.ask("List", {})["Err"] == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["colour=blue"], "colour"),
        (["cache-size=lots"], "cache-size"),
        (["cache-size=-1"], "cache-size"),
        (["uid=-5"], "uid"),
        (["prefix=../../x"], "prefix"),
        (["prefix=.s3vol/volumes"], "prefix"),
        (["bucket=a/b"], "bucket"),
        (["endpoint=gopher://x"], "endpoint"),
        (["on-remove=perhaps"], "on-remove"),
        (["access=exclusive"], "access"),
        (["secret-key=abcdef"], "secret-key"),
        (["access-key=abcdef"], "access-key"),
        (["cache-dir=/etc"], "cache-dir"),
        (["log-file=/etc/passwd"], "log-file"),
        (["suid=yes"], "suid"),
        (["credentials=../../etc/shadow"], "credentials"),
        (["o=bucket=x,colour=blue"], "colour"),
        (["size=10G"], "size"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_made(site: Site, options: list[str], says: str) -> None:
    name, before = fresh(), everything(site)
    words = [word for option in options for word in ("-o", option)]
    said = site.docker.refused("volume", "create", "-d", "s3vol", *words, name)
    assert says in said
    assert "abcdef" not in said, "a secret is not repeated"
    assert len(said.strip().splitlines()) == 1
    assert everything(site) == before
    assert name not in site.docker.volumes()


def test_secrets_are_in_no_log_and_no_command_line(site: Site) -> None:
    site.docker.refused("volume", "create", "-d", "s3vol", "-o", "secret-key=hunter2-hunter2", fresh())
    name = site.create()
    site.docker.sleeper("user", "-v", f"{name}:/d")
    everywhere = json.dumps(site.plugin.node.processes()) + json.dumps(site.docker.inspect("volume", name))
    logs = "".join(path.read_text(errors="replace") for path in (site.node.folder / "cache/s3vol").rglob("*.log"))
    for secret in ("hunter2-hunter2", SECRET_KEY):
        assert secret not in site.plugin.log + logs + everywhere


def test_credentials_that_are_not_on_this_node_are_named(site: Site) -> None:
    name = fresh()
    before = everything(site)
    said = site.docker.refused("volume", "create", "-d", "s3vol", "-o", "credentials=nowhere", name)
    assert "/etc/s3vol/credentials.d/nowhere" in said
    assert everything(site) == before


def test_wrong_credentials_fail_the_mount_and_leave_nothing_mounted(site: Site) -> None:
    key = site.node.path("etc/s3vol/credentials.d/wrong")
    key.write_text("[default]\naws_access_key_id = wrong\naws_secret_access_key = wrong-wrong\n")
    key.chmod(0o600)
    name = fresh()
    made = site.docker.run("volume", "create", "-d", "s3vol", "-o", "credentials=wrong", name)
    if made.returncode == 0:
        with within(60.0, "the refusal"):
            said = site.docker.refused("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")
    else:
        said = made.stderr
    assert "the access key is not known there" in said
    assert site.plugin.mounted() == []
    assert site.plugin.tap.count("Unmount", name) == 0


def test_a_full_disk_refuses_a_mount_and_leaves_nothing(site: Site) -> None:
    name = site.create()
    site.node.check("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/var/lib/s3vol/volumes")
    try:
        site.node.run("dd", "if=/dev/zero", "of=/var/lib/s3vol/volumes/full", "bs=4k")
        said = site.docker.refused("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "true")
        assert "No space left" in said
        assert site.plugin.mounted() == []
    finally:
        site.node.check("umount", "/var/lib/s3vol/volumes")
    site.docker.docker("run", "--rm", "-v", f"{name}:/d", BUSYBOX, "touch", "/d/works-again")
    assert site.objects(name) == {"works-again": b""}


def test_a_full_cache_disk_is_told_to_the_program_and_the_volume_goes_on(site: Site) -> None:
    name = site.create(None, "cache-free=4M", "cache-mode=writeback", "timeout=5s")
    cache = "/var/cache/s3vol/volumes"
    site.node.check("mkdir", "-p", cache)
    site.node.check("mount", "-t", "tmpfs", "-o", "size=48M", "tmpfs", cache)
    try:
        site.docker.sleeper("user", "-v", f"{name}:/d")
        script = "exec 3> /d/large; touch /tmp/open; while [ ! -e /tmp/go ]; do sleep 0.1; done; "
        script += "dd if=/dev/zero bs=1M count=100 >&3"
        said: list[str] = []
        writer = threading.Thread(target=lambda: said.append(site.docker.refused("exec", "user", "sh", "-c", script)))
        writer.start()
        wait_for(
            lambda: site.docker.run("exec", "user", "ls", "/tmp/open").returncode == 0, 60.0, "the file to be open"
        )
        with site.cable.silent():
            site.docker.sh("user", "touch /tmp/go")
            writer.join(100.0)
        assert "No space left" in said[0]
        site.docker.sh("user", "rm -f /d/large; echo small > /d/small; cat /d/small")
        site.docker.remove_containers()
        site.await_unused(name)
        assert site.objects(name)["small"] == b"small\n"
    finally:
        site.docker.remove_containers()
        site.plugin.await_idle()
        site.node.check("umount", "-l", cache)
