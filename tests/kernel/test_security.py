"""What other users, other processes and the network learn of a mount; and encryption, seen from a program."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.harness import Failed, Mounted, Node
from tests.kernel.rig import Bucket
from tests.support.minio import SECRET_KEY, Minio, paused
from tests.support.tls import certificate, certify

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

NOBODY = 65534


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory, minio: Minio) -> Iterator[Minio]:
    """A MinIO that speaks https and can encrypt; the other one is asked for to skip where there is none."""
    directory = tmp_path_factory.mktemp("tls")
    certify(directory)
    secret = f"tests:{base64.b64encode(os.urandom(32)).decode()}"
    with Minio(directory, environment={"MINIO_KMS_SECRET_KEY": secret}) as server:
        yield server


@pytest.fixture
def trust(minio: Minio) -> tuple[str, str]:
    """The option that makes a mount believe this server."""
    return ("--ca-bundle", str(minio.authority))


def as_user(uid: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as another user without any privilege."""
    drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]
    return subprocess.run([*drop, *command], capture_output=True, text=True, timeout=60, check=False)


def test_an_unknown_certificate_is_refused_in_one_line_and_trusted_when_it_is_named(
    bucket: Bucket, mount: MountFactory, minio: Minio, tmp_path: Path
) -> None:
    with pytest.raises(Failed) as refused:
        mount("a")
    (line,) = [line for line in refused.value.output.splitlines() if line.startswith("s3vol:")]
    assert refused.value.status == 2
    assert "certificate" in line
    assert "--ca-bundle" in line
    with_others = tmp_path / "bundle.pem"
    other = certificate(tmp_path / "other.crt", tmp_path / "other.key")
    with_others.write_bytes(other.read_bytes() + minio.authority.read_bytes())
    with pytest.raises(Failed, match="certificate"):
        mount("a", "--ca-bundle", str(other))
    for number, (options, environment) in enumerate(
        (
            (["--ca-bundle", str(with_others)], {}),
            ([], {"AWS_CA_BUNDLE": str(with_others)}),
            (["--no-verify-tls"], {}),
        )
    ):
        here = mount("a", *options, **environment)
        (here.path / f"f{number}").write_bytes(b"small")
        (here.path / f"d{number}").mkdir()
        here.umount()
        assert bucket.read(f"f{number}") == b"small"
        assert f"d{number}/" in bucket.all_keys()


def test_no_secret_is_in_arguments_log_status_or_files(
    bucket: Bucket, mount: MountFactory, minio: Minio, trust: tuple[str, str], tmp_path: Path
) -> None:
    key = os.urandom(24).hex()[:32].encode()
    (tmp_path / "key").write_bytes(key)
    (tmp_path / "key").chmod(0o600)
    secret = ("--sse-c-key", str(tmp_path / "key"))
    wrong = "a-wrong-secret-of-somebody"
    with pytest.raises(Failed) as refused:
        mount("a", *trust, *secret, "--log-level", "debug", AWS_SECRET_ACCESS_KEY=wrong)
    here = mount("a", *trust, *secret, "--log-level", "debug", "--timeout", "4s")
    (here.path / "f").write_bytes(b"x" * 5000)
    with paused(minio), pytest.raises(OSError, match="Input/output"):
        (here.path / "g").write_bytes(b"x")
    here.flush()
    status = json.dumps(here.status())
    arguments = Path(f"/proc/{here.pid}/cmdline").read_text()
    here.umount()
    seen = [refused.value.output, status, arguments, here.log]
    seen += [path.read_bytes().decode("latin-1") for path in here.node.folder.rglob("*") if path.is_file()]
    assert any("trace: put" in text for text in seen), "nothing was logged, so the test would prove nothing"
    for hidden in (SECRET_KEY, wrong, key.decode(), base64.b64encode(key).decode()):
        assert not any(hidden in text for text in seen), hidden
    for path in here.node.folder.rglob("*"):
        if path.is_relative_to(here.node.folder / "cache") and path.is_dir():
            assert path.stat().st_mode & 0o077 == 0, path


def test_the_memory_and_environment_of_a_mount_are_hidden_from_its_own_user(
    bucket: Bucket, minio: Minio, trust: tuple[str, str], tmp_path: Path
) -> None:
    # Of a process that may not be dumped, what is in /proc belongs to root:root, whoever runs it (proc(5)).
    with Node(tmp_path / "a", minio.environment) as node:
        here = node.mount(f"s3://{bucket.name}", *trust, preexec=partial(os.setgid, NOBODY))
        with subprocess.Popen(["sleep", "60"], preexec_fn=partial(os.setgid, NOBODY)) as other:
            groups = [Path(f"/proc/{pid}/environ").stat().st_gid for pid in (other.pid, here.pid)]
            other.kill()
    assert groups == [NOBODY, 0]


def test_other_users_get_what_mode_and_owner_allow_and_without_allow_other_nothing(
    mount: MountFactory, trust: tuple[str, str]
) -> None:
    alone = mount("a", *trust)
    (alone.path / "all").write_bytes(b"for all")
    assert "Permission denied" in as_user(NOBODY, "cat", str(alone.path / "all")).stderr
    alone.umount()
    here = mount("a", *trust, "--allow-other")
    _reachable(here)
    (here.path / "all").chmod(0o644)
    (here.path / "mine").write_bytes(b"mine")
    (here.path / "mine").chmod(0o600)
    (here.path / "theirs").write_bytes(b"theirs")
    os.chown(here.path / "theirs", NOBODY, NOBODY)
    (here.path / "theirs").chmod(0o400)
    (here.path / "closed").mkdir(mode=0o700)
    (here.path / "closed" / "all").write_bytes(b"behind a door")
    assert as_user(NOBODY, "cat", str(here.path / "all")).stdout == "for all"
    assert as_user(NOBODY, "cat", str(here.path / "theirs")).stdout == "theirs"
    for command in (
        ("cat", "mine"),
        ("cat", "closed/all"),
        ("ls", "closed"),
        ("touch", "new"),
        ("truncate", "-s0", "all"),
        ("truncate", "-s0", "theirs"),
        ("chmod", "600", "all"),
        ("chown", str(NOBODY), "all"),
        ("rm", "-f", "all"),
        ("mv", "all", "other"),
        ("ln", "-s", "x", "new"),
    ):
        words = [command[0], *(w if w[0] in "-0123456789" else str(here.path / w) for w in command[1:])]
        done = as_user(NOBODY, *words)
        assert done.returncode != 0, command
        assert "ermi" in done.stderr, done.stderr  # "Permission denied", "Operation not permitted"
    assert sorted(os.listdir(here.path)) == ["all", "closed", "mine", "theirs"]


def _reachable(here: Mounted) -> None:
    """Let everybody pass the directories of the test that lead to the mount."""
    for folder in here.path.parents:
        if folder.stat().st_uid == os.getuid() and folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o111)


def test_set_user_id_and_devices_count_only_when_they_were_asked_for(
    mount: MountFactory, trust: tuple[str, str]
) -> None:
    for options, flags in (((), {"nosuid", "nodev"}), (("--suid", "--dev"), set())):
        here = mount("a", *trust, *options)
        row = next(row for row in Path("/proc/mounts").read_text().splitlines() if str(here.path) in row)
        assert {"nosuid", "nodev"} & set(row.split()[3].split(",")) == flags
        here.umount()


@pytest.mark.parametrize("kind", ["sse-s3", "sse-c"])
def test_an_encrypted_volume_is_a_file_system_as_any(
    bucket: Bucket, mount: MountFactory, trust: tuple[str, str], tmp_path: Path, kind: str
) -> None:
    key = tmp_path / "key"
    key.write_text(base64.b64encode(os.urandom(32)).decode())
    key.chmod(0o600)
    options = (*trust, *(("--sse", "aes256") if kind == "sse-s3" else ("--sse-c-key", str(key))))
    here, big = mount("a", *options), os.urandom(1 << 20) * 66
    (here.path / "d").mkdir()
    (here.path / "d").chmod(0o750)
    (here.path / "d" / "f").write_bytes(b"first")
    with open(here.path / "d" / "f", "ab") as file:
        file.write(b" and second")
    os.setxattr(here.path / "d" / "f", "user.a", b"b")
    (here.path / "big").write_bytes(big)
    with open(here.path / "big", "r+b") as file:
        file.write(b"changed")
    os.link(here.path / "d" / "f", here.path / "linked")
    (here.path / "d").rename(here.path / "e")
    (here.path / "big").rename(here.path / "e" / "big")
    (here.path / "e").chmod(0o700)
    here.umount()
    there = mount("b", *options)
    assert (there.path / "e").stat().st_mode & 0o777 == 0o700
    assert (there.path / "e" / "f").read_bytes() == (there.path / "linked").read_bytes() == b"first and second"
    assert os.getxattr(there.path / "linked", "user.a") == b"b"
    assert (there.path / "e" / "big").read_bytes() == b"changed" + big[7:]
    (there.path / "e" / "big").unlink()
    assert "warning" not in there.log
    assert "warning" not in here.log
