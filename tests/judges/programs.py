"""Programs that verify what they did: fio, stress-ng, git, SQLite, pyxattr's tests, ctdb's ping_pong.

Each function makes a judge or is one (judges/base.py). Numbers are the smallest with which a program still does all
kinds of its work; a longer run is another argument.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

from tests.judges.base import Judge, Steps, Verdict, run
from tests.kernel.rig import tool, tools_folder

STRESSORS = (
    *("access", "chdir", "chmod", "chown", "dentry", "dir", "dirdeep", "dirmany"),
    *("filename", "link", "rename", "symlink", "touch", "utime"),
)
SLOW_STRESSORS = {"filename", "link", "symlink"}  # thousands of names for one round, whatever time they are given
_BOTH_COUNT = b"data increment = 2"  # ping_pong says so once, when it sees it first
_PING_PONG_S = 60.0
_IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "init.defaultBranch=main")


def fio(engine: str, *, size_mib: int = 16) -> Judge:
    """Random reads and writes of four files by four processes; each block carries a checksum that is verified."""

    def judge(folder: Path) -> Verdict:
        argv = [tool("fio"), "--name=verified", f"--directory={folder}", "--numjobs=4", f"--size={size_mib}M"]
        argv += ["--rw=randrw", "--bsrange=4k-64k", f"--ioengine={engine}", "--verify=crc32c", "--verify_fatal=1"]
        argv += ["--randseed=7", "--output-format=json"]
        done = run(argv, cwd=folder, timeout_s=280)
        try:
            jobs = json.loads(done.said[done.said.index("{") : done.said.rindex("}") + 1])["jobs"]
        except ValueError:
            jobs = []
        names = [f"process {at}" for at in range(4)]
        executed = {name for name, job in zip(names, jobs, strict=False) if job["read"]["io_bytes"] > size_mib << 19}
        failed = {name for name, job in zip(names, jobs, strict=False) if job["error"]}
        return Verdict(frozenset(executed), frozenset(failed if done.status == 0 else executed or names), done.said)

    return judge


def stress_ng(seconds: int, *, stressors: tuple[str, ...] = STRESSORS) -> Judge:
    """Threads of the kernel's file system calls, with stress-ng's own checks of what they did; all at the same time."""

    def judge(folder: Path) -> Verdict:
        report: list[str | Path] = [
            "--temp-path",
            folder,
            "--verify",
            "--timeout",
            str(seconds),
            "--metrics-brief",
            "--chdir-dirs",
            "64",
        ]
        wanted = [word for name in stressors for word in (f"--{name}", "1")]
        done = run([tool("stress-ng"), *report, *wanted], timeout_s=280)
        counts = dict(re.findall(r"metrc: +\[\d+\] (\w+) +(\d+) ", done.said))
        executed = frozenset(name for name in stressors if int(counts.get(name, 0)) > 0)
        failed = frozenset(name for name in stressors if re.search(rf"fail: +\[\d+\] (stress-ng-)?{name}\b", done.said))
        return Verdict(executed | failed, failed if done.status == 0 else failed or executed, done.said)

    return judge


def git(folder: Path) -> Verdict:
    """Commit, clone, worktree, repack, gc; `fsck --strict` after each. Nothing may be modified in the end."""
    steps = Steps()
    source, clone = folder / "source", folder / "clone"

    def say(name: str, cwd: Path, *argv: str | Path) -> str | None:
        return steps.run(name, "git", *_IDENTITY, *argv, cwd=cwd)

    source.mkdir()
    say("init", source, "init", "-q")
    for i in range(5):
        (source / f"a{i}").mkdir()
        for j in range(10):
            (source / f"a{i}" / f"f{j}").write_text(f"{i} {j}\n" * (j * 50 + 1))
        say(f"add {i}", source, "add", ".")
        say(f"commit {i}", source, "commit", "-qm", f"commit {i}")
    say("clone", folder, "clone", "-q", "--no-local", source, clone)
    say("fsck of a clone", clone, "fsck", "--strict")
    say("worktree", clone, "worktree", "add", "-q", "-b", "side", folder / "side")
    if (folder / "side").is_dir():
        (folder / "side" / "new").write_text("new\n")
    say("add in a worktree", folder / "side", "add", "new")
    say("commit in a worktree", folder / "side", "commit", "-qm", "in the worktree")
    say("repack", clone, "repack", "-adq")
    say("fsck after repack", clone, "fsck", "--strict")
    say("gc", clone, "gc", "-q", "--prune=now")
    say("fsck after gc", clone, "fsck", "--strict")
    say("worktree remove", clone, "worktree", "remove", folder / "side")
    modified = say("status", clone, "status", "--porcelain")
    steps.check("nothing is modified", modified == "", str(modified))
    return steps.verdict()


def sqlite(journal: str, *, rounds: int = 30) -> Judge:
    """Transactions by two connections that lock each other out; then the integrity check and the count of rows."""

    def judge(folder: Path) -> Verdict:
        steps = Steps()
        path = folder / f"{journal}.db"
        try:
            first, second = (sqlite3.connect(path, timeout=30) for _ in range(2))
            mode = first.execute(f"pragma journal_mode={journal}").fetchone()
            steps.check("the journal mode is taken", mode == (journal,), str(mode))
            first.execute("create table t(id integer primary key, body blob)")
            for i in range(rounds):
                writer = (first, second)[i % 2]
                with writer:
                    writer.executemany("insert into t(body) values (?)", [(os.urandom(i * 37),) for _ in range(20)])
                with writer:
                    writer.execute("delete from t where id % 20 = 7")
            rows = [one.execute("select count(*) from t").fetchone() for one in (first, second)]
            steps.check("both connections see the same", rows[0] == rows[1] == (rounds * 19,), str(rows))
            first.close()
            second.close()
            again = sqlite3.connect(path)
            found = again.execute("pragma integrity_check").fetchone()
            steps.check("the integrity check is ok", found == ("ok",), str(found))
            steps.check("all rows are there", again.execute("select count(*) from t").fetchone() == (rounds * 19,))
            again.close()
        except sqlite3.Error as error:
            steps.check("no error", False, repr(error))
        return steps.verdict()

    return judge


def pyxattr(folder: Path) -> Verdict:
    """The tests of pyxattr, an interface to extended attributes of files, directories and links.

    Without those that read one attribute 131,072 times in search of a memory leak: half an hour of FUSE requests.
    """
    home = tools_folder() / "pyxattr"
    python = home / "bin/python"
    assert python.exists(), f"{home} is missing: run tools/bootstrap test"
    options = [
        "-v",
        "-k",
        "not many_ops",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        str(home / "src"),
        "tests",
    ]
    extra = {"TEST_DIR": str(folder), "COLUMNS": "300"}  # pytest cuts long names where they do not fit
    done = run([python, "-m", "pytest", *options], timeout_s=900, cwd=home / "src", extra=extra)
    found = re.findall(r"^\S*test_\w+\.py::(.+?) (PASSED|FAILED|ERROR)", done.said, re.M)
    failed = frozenset(name for name, verdict in found if verdict != "PASSED")
    return Verdict(frozenset(name for name, _ in found), failed, done.said)


def ping_pong(folder: Path) -> Verdict:
    """Two processes hand a byte-range lock back and forth and count in the file: each must see the other's count."""
    file, steps = folder / "ping_pong", Steps()
    both = [
        subprocess.Popen([tool("ping_pong"), "-rw", file, "3"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    said = [b"", b""]

    def listen(at: int) -> None:
        out = both[at].stdout
        assert out is not None
        while piece := os.read(out.fileno(), 4096):
            said[at] += piece

    listeners = [threading.Thread(target=listen, args=(at,)) for at in (0, 1)]
    for listener in listeners:
        listener.start()
    end = time.monotonic() + _PING_PONG_S
    while time.monotonic() < end and not all(_BOTH_COUNT in text for text in said):
        time.sleep(0.05)
    for process, listener in zip(both, listeners, strict=True):
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        listener.join(30)
        if process.stdout is not None:
            process.stdout.close()
    for at, text in enumerate(said):
        steps.check(f"process {at} sees the other's count", _BOTH_COUNT in text, repr(text[-400:]))
    return steps.verdict()
