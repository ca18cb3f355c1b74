"""The unit files: systemd accepts them, they hold what dockerd needs, and installing them is repeatable."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from s3vol.cli import main
from s3vol.errors import S3volError
from s3vol_plugin import announce, installation
from s3vol_plugin.installation import Choice, settings_text
from tests.support.minio import required

SOCKET, SERVICE = installation.UNITS
SANDBOX = re.compile(  # systemd.exec(5): each of these gives the service a mount namespace of its own
    "^(Private(Tmp|Mounts|Devices|Users|IPC|Network)|Protect[A-Z][a-z]+|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)Paths"
    "|TemporaryFileSystem|Bind(ReadOnly)?Paths|Root(Directory|Image)|MountAPIVFS|DynamicUser|MountFlags|"
    "(State|Cache|Logs|Runtime|Configuration)Directory)=",
    re.MULTILINE,
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that the units may start."""
    path = tmp_path / "bin" / "s3vol-plugin"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def install(root: Path, program: Path, *words: str) -> int:
    """Run the command as a packager would."""
    return main(["plugin", "install", "--root", str(root), "--program", str(program), *words])


def values(text: str) -> dict[str, str]:
    """The settings of a unit file."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def test_systemd_accepts_the_units(tmp_path: Path, program: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        if required():
            pytest.fail("systemd-analyze is missing: apt-get install systemd")
        pytest.skip("UNITS NOT VERIFIED: systemd-analyze is missing (apt-get install systemd)")
    paths = [tmp_path / name for name in installation.UNITS]
    for path, text in zip(paths, installation.unit_texts(program).values(), strict=True):
        path.write_text(text)
    done = subprocess.run(
        [verify, "verify", "--man=no", "--recursive-errors=no", *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "s3vol" in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_the_units_start_before_docker_and_stay_out_of_the_way_of_mounts() -> None:
    texts = installation.unit_texts(Path("/usr/bin/s3vol-plugin"))
    service, socket = values(texts[SERVICE]), values(texts[SOCKET])
    assert "docker.service" in service["Before"]
    assert "network-online.target" in service["After"]
    assert (service["Type"], service["KillMode"], service["OOMPolicy"]) == ("notify", "process", "continue")
    assert int(service["WatchdogSec"]) > 0
    assert (socket["ListenStream"], socket["SocketMode"]) == ("/run/docker/plugins/s3vol.sock", "0600")
    assert SANDBOX.findall(texts[SERVICE]) == []


def test_a_program_whose_path_systemd_would_read_differently_is_refused() -> None:
    for path in ("/opt/my tools/s3vol-plugin", "/opt/100%/s3vol-plugin", "s3vol-plugin", '/opt/"x"'):
        with pytest.raises(S3volError, match="systemd wants a path"):
            installation.unit_texts(Path(path))


def test_install_writes_units_and_settings_and_changes_nothing_the_second_time(
    tmp_path: Path, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    words = ["--registry", "s3://volumes", "--endpoint", "http://minio:9000", "--credentials", "prod"]
    assert install(root, program, *words) == 0
    assert "etc/s3vol/credentials.d/prod" in capsys.readouterr().out
    assert f"ExecStart={program}\n" in (root / installation.UNIT_DIRECTORY / SERVICE).read_text()
    settings = tomllib.loads((root / installation.SETTINGS).read_text())
    assert settings == {
        "source": "s3://volumes",
        "credentials": "prod",
        "defaults": {"endpoint": "http://minio:9000"},
    }
    assert stat.S_IMODE((root / installation.CREDENTIALS).stat().st_mode) == 0o700
    (root / installation.SETTINGS).write_text('source = "s3://mine"\n')
    assert install(root, program) == 0
    assert capsys.readouterr().out == ""
    assert (root / installation.SETTINGS).read_text() == 'source = "s3://mine"\n'
    assert main(["plugin", "uninstall", "--root", str(root)]) == 0
    assert capsys.readouterr().out.count("removed") == 2
    assert installation.installed_units(root) == []
    assert (root / installation.SETTINGS).exists()


def test_without_settings_install_asks_for_the_registry_and_writes_nothing(
    tmp_path: Path, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([], ["--registry", "memory:"], ["--registry", "/srv/objects"]):
        assert install(tmp_path / "root", program, *words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert not (tmp_path / "root").exists()


def test_install_does_not_pretend_to_change_settings_that_exist(
    tmp_path: Path, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(tmp_path / "root", program, "--registry", "s3://one") == 0
    assert install(tmp_path / "root", program, "--registry", "s3://two") == 2
    assert "exists already" in capsys.readouterr().err


def test_a_directory_that_may_not_be_written_is_one_line(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(Path("/proc/nothing"), program, "--registry", "s3://one") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("source", ["s3://volumes", "ipfs://volumes"])
def test_the_first_settings_file_says_every_setting_as_toml(source: str) -> None:
    text = installation.settings_text(installation.Choice(source))
    uncommented = re.sub(r'^# (?=[a-z-]+ = ")', "", text, flags=re.MULTILINE)
    found = tomllib.loads(uncommented)
    assert set(found) == {"source", "credentials", "node", "defaults"}
    servers = {"endpoint"} if source.startswith("s3:") else {"kubo", "cluster", "cluster-url"}
    assert set(found["defaults"]) == {*servers, "cache-size"}


def test_the_units_are_in_the_package() -> None:
    script = "from s3vol_plugin import installation as i; print(len(i.unit_texts(i.Path('/usr/bin/x'))))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "2"


def test_the_first_settings_can_be_read_whatever_the_registry_is_called() -> None:
    source = "s3://bucket/\N{ROCKET}ü"
    assert tomllib.loads(settings_text(Choice(source)))["source"] == source


_ODD_NAME = "open('/proc/self/comm', 'wb').write(b'\\xff\\xfe'); print('ready', flush=True); input()"


def test_a_process_of_any_name_does_not_keep_the_engine_from_being_found() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ODD_NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as odd:
        assert odd.stdout is not None
        assert odd.stdout.readline() == "ready\n"
        assert Path(f"/proc/{odd.pid}/comm").read_bytes() == b"\xff\xfe\n"
        try:
            assert announce.engine_runs() in (True, False)
        finally:
            odd.communicate("\n")
