"""A program that works in one directory of a mount while its network is bad, and keeps a ledger of what must be true.

Theory of operation. For each path the ledger has the set of contents that are allowed: one after a call that succeeded;
the old and the new one after a call that failed, for its outcome is unknown. None is "no file". A read may return one
of them and nothing else. A failed rename leaves both names in doubt, but one of them has the file (`either`). Names in
doubt after a rename are not used again, so that the ledger stays exact for all others.

Everything is drawn from a seed; several programs run in threads, each in a directory of its own.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

Content = bytes | None  # None: no such file

TROUBLE = frozenset({errno.EIO, errno.ESTALE})
"""What a program may be told when the network is bad."""

SMALL_BYTES = 40_000


@dataclass
class Worker:
    """One program. `problems` is what may not be; `errors` counts what may."""

    root: Path
    seed: int
    big: bytes = b""
    allowed: dict[str, set[Content]] = field(default_factory=dict)
    either: list[tuple[set[str], set[Content]]] = field(default_factory=list)  # one of the names has one of these
    problems: list[str] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")
    slowest_tree: tuple[float, str] = (0.0, "")  # a renamed directory is as many requests as it has files
    calls: int = 0

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._serial = 0
        self._folder = ""  # where new files go, with a slash at its end
        self._folders: list[str] = [""]
        self._retired: set[str] = set()

    def run(self, seconds: float) -> None:
        """Work for so long; one more call may be in progress then."""
        steps: dict[Callable[[], None], int] = {
            self.create: 6,
            self.rewrite: 4,
            self.append: 3,
            self.read: 6,
            self.rename: 3,
            self.rename_over: 1,
            self.unlink: 2,
            self.make_folder: 1,
            self.rename_folder: 1,
        }
        if self.big:
            steps[self.write_big] = 1
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._draw.choices(list(steps), list(steps.values()))[0]()

    # Steps

    def create(self) -> None:
        """A new file."""
        self._write(self._new_name(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._body())

    def write_big(self) -> None:
        """A new file that goes as a multipart upload, or an old one anew."""
        name = next((name for name, known in self.allowed.items() if name.endswith("big") and self._usable(name)), None)
        self._serial += 1
        body = self._serial.to_bytes(8, "big") + self.big
        self._write(name or f"{self._new_name()}-big", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, body)

    def rewrite(self) -> None:
        """Another content."""
        if name := self._some():
            self._write(name, os.O_WRONLY | os.O_TRUNC, self._body())

    def append(self) -> None:
        """More content."""
        if name := self._some():
            self._write(name, os.O_WRONLY | os.O_APPEND, self._body())

    def read(self) -> None:
        """Whatever is read is one of the allowed contents, whole."""
        name = self._draw.choice(sorted(self.allowed)) if self.allowed else ""
        if name:
            ok, body = self._timed(f"read {name}", lambda: self._path(name).read_bytes(), missing=True)
            if ok:
                self._judge(name, body, "read")

    def read_elsewhere(self, mounted: Path, seconds: float) -> None:
        """Read all files through another mount, where nothing of them is cached."""
        names = sorted(self.allowed)
        self._draw.shuffle(names)
        end_s = time.monotonic() + seconds
        for name in names:
            if time.monotonic() > end_s:
                return
            path = mounted / self.root.name / name
            ok, body = self._timed(f"read {name} elsewhere", path.read_bytes, missing=True)
            if ok:
                self._judge(name, body, "read elsewhere")

    def rename(self) -> None:
        """To a new name."""
        if name := self._some():
            self._rename(name, self._new_name())

    def rename_over(self) -> None:
        """In the place of another file."""
        name, other = self._some(), self._some()
        if name and other and name != other:
            self._rename(name, other)

    def unlink(self) -> None:
        """Remove a file."""
        if name := self._some():
            ok, _ = self._timed(f"unlink {name}", lambda: self._path(name).unlink())
            if ok:
                self.allowed[name] = {None}
            else:
                self.allowed[name].add(None)

    def make_folder(self) -> None:
        """New files go there from now on."""
        self._serial += 1
        folder = f"d{self._serial}/"
        ok, _ = self._timed(f"mkdir {folder}", lambda: self._path(folder).mkdir())
        if ok:
            self._folder = folder
            self._folders.append(folder)

    def rename_folder(self) -> None:
        """With all that is in it."""
        if not self._folder:
            return
        self._serial += 1
        old, new = self._folder, f"d{self._serial}/"
        ok, _ = self._timed(f"rename {old} {new}", lambda: self._path(old).rename(self._path(new)))
        self._folder = new if ok else ""
        for names, _ in self.either:
            moved = {new + name.removeprefix(old) for name in names if name.startswith(old)}
            names.update(moved)
        for name in [name for name in self.allowed if name.startswith(old)]:
            self._moved(name, new + name.removeprefix(old), ok)

    # The ledger

    def _write(self, name: str, flags: int, body: bytes) -> None:
        known = self.allowed.setdefault(name, {None})
        bases = known if flags & os.O_APPEND else {b""}
        news: set[Content] = {(base or b"") + body for base in bases}
        ok, fd = self._timed(f"open {name}", lambda: os.open(self._path(name), flags, 0o640))
        if not ok or fd is None:
            if flags & (os.O_CREAT | os.O_TRUNC):
                known.add(b"")
            return
        ok = self._timed(f"write {name}", lambda: _write_all(fd, body))[0]
        ok = self._timed(f"close {name}", lambda: os.close(fd))[0] and ok
        if not ok:
            news |= known | ({b""} if flags & (os.O_CREAT | os.O_TRUNC) else set())
        self.allowed[name] = news

    def _rename(self, old: str, new: str) -> None:
        ok, _ = self._timed(f"rename {old} {new}", lambda: self._path(old).rename(self._path(new)))
        self._moved(old, new, ok)

    def _moved(self, old: str, new: str, ok: bool) -> None:
        was = self.allowed[old]
        if ok:
            self.allowed[new], self.allowed[old] = was, {None}
            if old in self._retired:
                self._retired.add(new)
            return
        self.either.append(({old, new}, set(was)))
        self.allowed[new] = self.allowed.get(new, {None}) | was
        self.allowed[old] = was | {None}
        self._retired |= {old, new}

    def _judge(self, name: str, body: Content, what: str) -> None:
        if body not in self.allowed.get(name, {None}):
            known = ", ".join(_shown(content) for content in self.allowed.get(name, {None}))
            self.problems.append(f"{what} {name}: {_shown(body)} is none of {known}")

    def check(self, read: Callable[[str], Content], what: str) -> None:
        """Compare everything with what `read` finds under a name."""
        found = {name: read(name) for name in self.allowed}
        for name, body in found.items():
            self._judge(name, body, what)
        for names, contents in self.either:
            if None not in contents and not any(found[name] in contents for name in names):
                self.problems.append(f"{what}: none of {sorted(names)} is there after a rename that failed")

    def read_mounted(self, name: str) -> Content:
        """The file through the mount."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None

    # Parts

    def _timed(self, what: str, call: Callable[[], T], *, missing: bool = False) -> tuple[bool, T | None]:
        """(succeeded, result). A file that is missing is a result (None) with `missing`."""
        began_s = time.monotonic()
        self.calls += 1
        try:
            return True, call()
        except OSError as error:
            if missing and error.errno == errno.ENOENT:
                return True, None
            code = errno.errorcode.get(error.errno or 0, "?")
            self.errors[code] = self.errors.get(code, 0) + 1
            if error.errno not in TROUBLE and not self._explained(error.errno, what):
                self.problems.append(f"{what}: {code}")
            return False, None
        finally:
            taken = (time.monotonic() - began_s, what)
            if what.startswith("rename") and what.endswith("/"):
                self.slowest_tree = max(self.slowest_tree, taken)
            else:
                self.slowest = max(self.slowest, taken)

    def _explained(self, number: int | None, what: str) -> bool:
        """ENOENT and EEXIST are honest about a name in doubt."""
        doubtful = any(len(self.allowed.get(name, ())) > 1 for name in what.split()[1:])
        return number in (errno.ENOENT, errno.EEXIST) and doubtful

    def _usable(self, name: str) -> bool:
        return None not in self.allowed[name] and name not in self._retired

    def _some(self) -> str:
        names = [name for name in sorted(self.allowed) if self._usable(name) and not name.endswith("big")]
        return self._draw.choice(names) if names else ""

    def _new_name(self) -> str:
        self._serial += 1
        return f"{self._folder}f{self._serial}"

    def _body(self) -> bytes:
        return self._draw.randbytes(self._draw.randrange(1, SMALL_BYTES))

    def _path(self, name: str) -> Path:
        return self.root / name


def _write_all(fd: int, body: bytes) -> None:
    view = memoryview(body)
    while view:
        view = view[os.write(fd, view[: 1 << 20]) :]


def _shown(content: Content) -> str:
    return "no file" if content is None else f"{len(content)} bytes {hashlib.md5(content).hexdigest()[:8]}"
