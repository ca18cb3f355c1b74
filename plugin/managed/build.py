"""Build the directory of dockerd's managed plugin (`docker plugin create`) from what is installed on this machine.

Theory of operation. `config.json` beside this file, and a root file system that holds one program: the Python that
runs this, its standard library without tests and tools, the packages that s3vol depends on (by their own metadata, so
that nothing of the development environment comes along), the shared libraries that the loader really finds for all
of them, and the certificates of the authorities. No registry, no package server, no container engine is needed, and
what was tested here is what runs there.

The result depends on its inputs only: files are compiled to bytecode that is checked by content, times are those of
SOURCE_DATE_EPOCH (else 0). It is for the architecture and the kernel interface of this machine.

Rejected: debootstrap (needs a package server, 300 MB, and then still pip in it), and an image from a registry.
"""

from __future__ import annotations

import argparse
import compileall
import functools
import importlib.metadata
import os
import py_compile
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
OUR_PACKAGES = ("s3vol", "fuse/s3vol_fuse", "plugin/s3vol_plugin")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# Parts of the standard library that a daemon cannot want: more than half of its size.
_LEFT_OUT = shutil.ignore_patterns(
    *("__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "config-*", "*.a"),
    *("site-packages", "dist-packages", "pydoc_data", "_test*.so", "_tkinter*.so", "xxlimited*.so", "_ctypes_test*.so"),
)
# botocore describes 400 services; these are the ones that S3 and its sign-in use.
_BOTOCORE_KEPT = {"s3", "sts", "sso", "sso-oidc", "signin"}

_DIRECTORIES = {  # what runc and the daemon mount on or write to; runc makes none of them
    **dict.fromkeys(("dev", "proc", "sys", "etc", "run/docker/plugins", "mnt/volumes"), 0o755),
    **dict.fromkeys(("run/s3vol", "var/lib/s3vol", "var/cache/s3vol", "etc/s3vol"), 0o700),
    "tmp": 0o1777,
}
_FILES: Mapping[str, str] = {
    "etc/passwd": "root:x:0:0:root:/run/s3vol:/sbin/nologin\n",
    "etc/group": "root:x:0:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/hosts": "",  # dockerd mounts the host's own on these two
    "etc/resolv.conf": "",
}


class BuildError(Exception):
    """One line that says what is missing."""


def build(target: Path) -> None:
    """Make `target` anew: config.json and rootfs/. Raises BuildError."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    root = partial / "rootfs"
    _make_skeleton(root)
    copy_python(root)
    copy_packages(root / packages_directory())
    copy_libraries(root)
    shutil.copy(HERE / "config.json", partial / "config.json")
    _compile(root)
    _set_times(partial, int(os.environ.get("SOURCE_DATE_EPOCH", "0")))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _make_skeleton(root: Path) -> None:
    for name, mode in _DIRECTORIES.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    (root / "etc/mtab").symlink_to("/proc/self/mounts")
    if not CERTIFICATES.exists():
        raise BuildError(f"{CERTIFICATES}: is missing: install the package ca-certificates")
    (root / CERTIFICATES.parent.relative_to("/")).mkdir(parents=True)
    shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))


def copy_python(root: Path) -> None:
    """The interpreter and its standard library, below /usr wherever they are here."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    executable = Path(sys.executable).resolve()
    (root / "usr/bin").mkdir(parents=True)
    shutil.copy(executable, root / "usr/bin" / version)
    (root / "usr/bin/python3").symlink_to(version)
    shutil.copytree(_stdlib(), root / "usr/lib" / version, symlinks=False, ignore=_LEFT_OUT)


def _stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


@functools.cache
def packages_directory() -> str:
    """Where this Python looks for packages when its prefix is /usr (Debian's has a name of its own for it)."""
    script = "import site, sys; print(sys.base_prefix); print(site.getsitepackages()[-1])"
    executable = str(Path(sys.executable).resolve())
    done = subprocess.run([executable, "-Ic", script], capture_output=True, text=True, check=True)
    prefix, folder = done.stdout.splitlines()
    return str(Path("usr") / Path(folder).relative_to(prefix))


def needed(name: str) -> set[str]:
    """Distributions that `name` needs at run time here, itself included, by their metadata."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if current in found:
            continue
        found.add(current)
        for line in importlib.metadata.requires(current) or []:
            requirement, _, marker = line.partition(";")
            word = re.match(r"[A-Za-z0-9._-]+", requirement)
            if word and "extra" not in marker and _installed(word[0]):
                waiting.append(word[0])
    return found


def _installed(name: str) -> bool:
    """False for what a marker (another system, an older Python) has kept from being installed."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def copy_packages(target: Path) -> None:
    """Our packages from this checkout, the others as they are installed."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyi")
    target.mkdir(parents=True, exist_ok=True)
    for package in OUR_PACKAGES:
        shutil.copytree(REPOSITORY / package, target / Path(package).name, ignore=ignored)
    for name in sorted(needed("s3vol") - {"s3vol"}):
        for file in importlib.metadata.files(name) or []:
            source = Path(str(file.locate()))
            inside = ".." not in file.parts and "__pycache__" not in file.parts and file.suffix != ".pyi"
            if inside and _wanted(file.parts) and source.is_file():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target / file)
    _copy_own_metadata(target)


def _wanted(parts: tuple[str, ...]) -> bool:
    """False for botocore's descriptions of services that nobody here calls."""
    return parts[:2] != ("botocore", "data") or len(parts) == 3 or parts[2] in _BOTOCORE_KEPT


def _copy_own_metadata(target: Path) -> None:
    """Our own version, which an editable installation keeps elsewhere."""
    for file in importlib.metadata.files("s3vol") or []:
        if file.name == "METADATA":
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target / file)


def copy_libraries(root: Path) -> None:
    """Every shared library that the loader finds for what is in `root`, where the loader there will look for it."""
    binaries = [path for path in root.rglob("*") if not path.is_symlink() and path.is_file() and _is_elf(path)]
    triplet = sysconfig.get_config_var("MULTIARCH") or ""
    libraries = root / "usr/lib" / triplet
    libraries.mkdir(parents=True, exist_ok=True)
    for name, source in sorted(_libraries(binaries)):
        if source.is_relative_to(root):  # a wheel's own, found through its run path
            continue
        target = (
            root / name.lstrip("/") if name.startswith("/") else libraries / name
        )  # the loader has an absolute name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _libraries(binaries: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Pairs of the name that is asked for and the file that the loader took, for all binaries together."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR") or "")}
    done = subprocess.run(
        ["ldd", *map(str, binaries)], capture_output=True, text=True, env=environment, check=False
    )  # its status is 1 when one of them is static
    found = set()
    for line in done.stdout.splitlines():
        if missing := re.match(r"\s+(\S+) => not found", line):
            raise BuildError(f"shared library {missing[1]}: is needed and not installed here")
        if named := re.match(r"\s+(\S+) => (/\S+) \(0x", line):
            found.add((named[1], Path(named[2])))
        elif loader := re.match(r"\s+(/\S+) \(0x", line):
            found.add((loader[1], Path(loader[1])))
    yield from found


def _compile(root: Path) -> None:
    """Bytecode beside each module, so that each start is a fast one; checked by nothing, for nothing changes there."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for folder in (root / "usr/lib",):
        compileall.compile_dir(folder, quiet=2, force=True, stripdir=str(root), invalidation_mode=mode, workers=1)


def _set_times(top: Path, epoch_s: int) -> None:
    for folder, _, files in os.walk(top, topdown=False):
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
            os.utime(path, (epoch_s, epoch_s), follow_symlinks=False)
        os.utime(folder, (epoch_s, epoch_s))


def size_bytes(top: Path) -> int:
    """Bytes of all files below `top`."""
    return sum(path.lstat().st_size for path in top.rglob("*") if path.is_file() and not path.is_symlink())


def main() -> int:
    """Build, and say what came out."""
    parser = argparse.ArgumentParser(prog="tools/build-plugin", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", nargs="?", default=str(REPOSITORY / "dist" / "plugin"))
    target = Path(parser.parse_args().directory).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        build(target)
    except (BuildError, OSError, subprocess.CalledProcessError) as error:
        print(f"build-plugin: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {size_bytes(target) / 1e6:.0f} MB; next: s3vol plugin install --managed --directory {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
