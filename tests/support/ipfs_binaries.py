"""Kubo and IPFS-Cluster for tests: found in the tools folder, or built from the pinned Go modules.

Theory of operation. The versions are those of tools/ipfs/*/go.mod, and go.sum makes the builds the same everywhere; a
binary of another version is built anew. Each program is a module of its own, so that it is built from the
dependencies that its authors released it with. What shortens the build: no `go mod tidy` (50 s: it fetches what the
tests of 250 modules import), no debug information, no C compiler, and one build cache for both, which share libp2p.

From nothing (module cache and build cache empty) on two cores: downloads 15 s, Kubo 170 s and Cluster 85 s of
processor time, about three minutes in all. Module cache 1.2 GB, binaries 115 MB.

Rejected: images of a registry (not every CI reaches one), one module for both (Cluster with Kubo's
dependencies is a program that nobody runs).

`python -m tests.support.ipfs_binaries --ensure` finds or builds both and prints their paths.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
_BUILD_S = 1800.0


class IpfsMissing(RuntimeError):
    """No way to the daemons on this machine; the message says what was tried."""


@dataclass(frozen=True, slots=True)
class Program:
    """A command of a Go module that tools/ipfs/`folder` pins."""

    name: str
    folder: str
    module: str
    package: str

    def version(self) -> str:
        """The pinned version, without `v`."""
        text = (_REPOSITORY / "tools/ipfs" / self.folder / "go.mod").read_text()
        found = re.search(rf"{re.escape(self.module)} v(\S+)", text)
        assert found, f"tools/ipfs/{self.folder}/go.mod does not name {self.module}"
        return found[1]


KUBO = Program("ipfs", "kubo", "github.com/ipfs/kubo", "github.com/ipfs/kubo/cmd/ipfs")
CLUSTER = Program(
    "ipfs-cluster-service",
    "cluster",
    "github.com/ipfs-cluster/ipfs-cluster",
    "github.com/ipfs-cluster/ipfs-cluster/cmd/ipfs-cluster-service",
)


def required() -> bool:
    """True where missing daemons must fail the run instead of skipping tests (CI, S3VOL_REQUIRE_IPFS=1)."""
    return os.environ.get("S3VOL_REQUIRE_IPFS", "") not in ("", "0") or os.environ.get("CI", "") not in ("", "0")


def _folder() -> Path:
    root = os.environ.get("S3VOL_TOOLS_DIR")
    return (Path(root) if root else _REPOSITORY / ".cache") / "bin"


def _is_pinned(path: str, program: Program) -> bool:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    return program.version() in done.stdout.split()


def find(program: Program) -> str | None:
    """Path of this program in its pinned version: the tools folder, then PATH."""
    places = (shutil.which(program.name, path=str(_folder())), shutil.which(program.name))
    return next((place for place in places if place and _is_pinned(place, program)), None)


def build(program: Program) -> str:
    """Build it into the tools folder; returns its path. Raises IpfsMissing."""
    go = shutil.which("go")
    if go is None:
        raise IpfsMissing(f"no {program.name} {program.version()}, and no `go` to build it with: tools/bootstrap test")
    target = _folder()
    target.mkdir(parents=True, exist_ok=True)
    # GOTOOLCHAIN=auto lets an older Go fetch the one that go.mod asks for.
    environment = os.environ | {"GOTOOLCHAIN": "auto", "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    fresh = target / f".{program.name}.{os.getpid()}"
    lean = ["-trimpath", "-ldflags=-s -w", "-gcflags=all=-dwarf=false"]
    done = subprocess.run(
        [go, "build", *lean, "-o", str(fresh), program.package],
        cwd=_REPOSITORY / "tools/ipfs" / program.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_BUILD_S,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise IpfsMissing(f"`go build {program.package}` failed: {said[-1] if said else done.returncode}")
    path = target / program.name
    fresh.rename(path)  # several checkouts share the folder: never half a program, never a busy one overwritten
    return str(path)


def ensure(program: Program) -> str:
    """`find`, else `build`. Raises IpfsMissing."""
    return find(program) or build(program)


def main() -> int:
    """Find or build both and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ensure", action="store_true", help="find or build the daemons and print their paths")
    what.add_argument("--find", action="store_true", help="only find them; status 1 when one has to be built")
    args = parser.parse_args()
    if args.find:
        return 0 if all(find(program) for program in (KUBO, CLUSTER)) else 1
    try:
        for program in (KUBO, CLUSTER):
            print(ensure(program))
    except IpfsMissing as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
