"""The file systems that are compared, each with the options that make it keep the promise it is listed under.

Options are the peers' defaults but for what the comparison needs: path-style addressing, a cache folder of the run's
own, and the promise. Programs that are not on PATH are left out, and the report says so.

s3fs has `use_cache`, because s3vol and rclone keep content on the local disk as well. rclone's cache mode is `full`:
the only one with random writes. With --vfs-write-back 0 it uploads when the kernel releases a file, which is after
close() has returned: most of its rows show that its promise is not kept. GeeseFS and Mountpoint have no limit to set.
JuiceFS keeps metadata in a Redis of its own, as its manual does for speed, and does not report its use to its makers.
With --writeback an unmount leaves what is staged in the cache folder, so every figure waits until nothing is. goofys
and Mountpoint cannot write at random, and have no figure in those rows.

Keys go to programs in the environment: every user of the machine can read a command line.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from s3vol_bench.errors import BenchError
from s3vol_bench.rows import Promise
from s3vol_bench.targets.base import Ground, Launch, Target

_REDIS_S = 10.0
_UNSYNCED = "JuiceFS --writeback never syncs what it stages (pkg/chunk/disk_cache.go)"


def s3vol(options: Sequence[str] = ()) -> tuple[Target, Target]:
    """s3vol as it is by default, and with --write-back; `options` of the user's go to both."""

    def launch(ground: Ground, *more: str) -> Launch:
        command = [sys.executable, "-m", "s3vol", "mount", "--foreground", *options, *more]
        command += ["--cache-dir", str(ground.cache), f"s3://{ground.endpoint.bucket}/{ground.prefix}"]
        runtime = {"S3VOL_RUNTIME_DIR": str(ground.folder / "run")}
        return Launch([*command, str(ground.point)], runtime)

    local = ("--close", "local", "--fsync", "local")
    return (
        Target("s3vol", "s3vol", Promise.BUCKET, launch, ends_on_sigterm=True),
        Target(
            "s3vol-write-back",
            "s3vol --write-back --fsync local",
            Promise.SOON,
            lambda ground: launch(ground, *local),
            ends_on_sigterm=True,
        ),
    )


def _s3fs(ground: Ground) -> Launch:
    point = ground.endpoint
    options = [f"url={point.url}", f"endpoint={point.region}", f"use_cache={ground.cache}"]
    options += ["use_path_request_style"] if point.path_style else []
    options += [] if point.verify_tls else ["no_check_certificate", "ssl_verify_hostname=0"]
    bucket = f"{point.bucket}:/{ground.prefix}"
    variables = {"AWSACCESSKEYID": point.access_key, "AWSSECRETACCESSKEY": point.secret_key}
    if point.session_token:
        variables["AWSSESSIONTOKEN"] = point.session_token
        options.append("use_session_token")
    return Launch(["s3fs", "-f", bucket, str(ground.point), "-o", ",".join(options)], variables)


def _rclone(ground: Ground, write_back: str) -> Launch:
    point = ground.endpoint
    command = ["rclone", "mount", f":s3:{point.bucket}/{ground.prefix}", str(ground.point), "--config", ""]
    command += ["--cache-dir", str(ground.cache), "--vfs-cache-mode", "full", "--vfs-write-back", write_back]
    command += ["--s3-provider", "Other", "--s3-env-auth", "--s3-endpoint", point.url, "--s3-region", point.region]
    command += [f"--s3-force-path-style={'true' if point.path_style else 'false'}"]
    return Launch([*command, *([] if point.verify_tls else ["--no-check-certificate"])])


def _geesefs(ground: Ground, *more: str) -> Launch:
    point = ground.endpoint
    command = ["geesefs", "-f", "--endpoint", point.url, "--region", point.region, *more]
    return Launch([*command, f"{point.bucket}:{ground.prefix}", str(ground.point)])


def _goofys(ground: Ground) -> Launch:
    point = ground.endpoint
    command = ["goofys", "-f", "--endpoint", point.url, "--region", point.region]
    return Launch([*command, f"{point.bucket}:{ground.prefix}", str(ground.point)])


def _mountpoint(ground: Ground) -> Launch:
    point = ground.endpoint
    command = ["mount-s3", "--foreground", "--endpoint-url", point.url, "--region", point.region]
    command += ["--allow-delete", "--allow-overwrite", "--cache", str(ground.cache), "--prefix", f"{ground.prefix}/"]
    command += ["--force-path-style"] if point.path_style else []
    return Launch([*command, point.bucket, str(ground.point)])


def volume_name(ground: Ground) -> str:
    """Of JuiceFS: it keeps its objects below this name at the top of the bucket, whatever prefix a run has."""
    return re.sub(r"[^a-z0-9]+", "-", ground.prefix.lower())[-60:].strip("-")


def _redis_socket(ground: Ground) -> Path:
    return ground.state / "redis.sock"


def _juicefs(ground: Ground, *more: str) -> Launch:
    meta = f"unix://{_redis_socket(ground)}?db=1"
    command = ["juicefs", "mount", "--no-usage-report", "--cache-dir", str(ground.cache), *more]
    return Launch([*command, meta, str(ground.point)])


def _juicefs_stages(cache: Path) -> bool:
    return any(files for folder in cache.glob("*/rawstaging") for _, _, files in os.walk(folder))


@contextlib.contextmanager
def _juicefs_volume(ground: Ground) -> Iterator[None]:
    """A Redis, and a volume formatted in it, for the mounts of one session. Raises BenchError."""
    socket, point = _redis_socket(ground), ground.endpoint
    command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(ground.state)]
    redis = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        end_s = time.monotonic() + _REDIS_S
        while not socket.exists():
            if time.monotonic() > end_s or redis.poll() is not None:
                raise BenchError("juicefs: its Redis did not start")
            time.sleep(0.02)
        formatting = ["juicefs", "format", "--storage", "s3", "--bucket", f"{point.url}/{point.bucket}"]
        keys = {
            "ACCESS_KEY": point.access_key,
            "SECRET_KEY": point.secret_key,
            "SESSION_TOKEN": point.session_token or "",
        }
        done = subprocess.run(
            [*formatting, f"unix://{socket}?db=1", volume_name(ground)],
            env={**os.environ, **point.environment, **keys},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise BenchError(f"juicefs format: {' '.join((done.stdout + done.stderr).split())[-300:]}")
        yield
    finally:
        redis.terminate()
        redis.wait()


def peers() -> tuple[Target, ...]:
    """All peers that are known, whether they are on PATH or not."""
    sync, soon = Promise.BUCKET, Promise.SOON
    ignored = "goofys ignores fsync (internal/goofys.go)"
    lies: dict[str, Any] = {"fsync_does_nothing": "rclone's fsync returns without doing anything (cmd/mount/file.go)"}

    def juicefs(name: str, label: str, promise: Promise, *more: str, fsync: str = "") -> Target:
        return Target(
            name,
            label,
            promise,
            lambda ground: _juicefs(ground, *more),
            "juicefs",
            prepare=_juicefs_volume,
            needs=("redis-server",),
            own_format=True,
            stages=_juicefs_stages,
            fsync_does_nothing=fsync,
        )

    return (
        Target("s3fs", "s3fs", sync, _s3fs, "s3fs"),
        Target("rclone-sync", "rclone --vfs-write-back 0", sync, lambda g: _rclone(g, "0s"), "rclone", **lies),
        Target("rclone", "rclone", soon, lambda g: _rclone(g, "1s"), "rclone", **lies),
        Target("geesefs-sync", "GeeseFS --fsync-on-close", sync, lambda g: _geesefs(g, "--fsync-on-close"), "geesefs"),
        Target("geesefs", "GeeseFS", soon, _geesefs, "geesefs"),
        Target("goofys", "goofys", sync, _goofys, "goofys", fsync_does_nothing=ignored),
        Target("mountpoint", "Mountpoint for S3", sync, _mountpoint, "mount-s3"),
        juicefs("juicefs", "JuiceFS, Redis", sync),
        juicefs("juicefs-write-back", "JuiceFS --writeback", soon, "--writeback", fsync=_UNSYNCED),
    )
