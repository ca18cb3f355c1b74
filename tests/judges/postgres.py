"""PostgreSQL: a cluster with checksums, a benchmark whose sums must agree, and the checksums of all its pages.

Theory of operation. pgbench moves amounts between accounts and writes each into a history, in one transaction; whatever
the order, the sum of all balances is the sum of the history. The server runs as the user that its package makes, on a
socket in a folder of the local disk (a socket's path is short, and no port is taken). Nothing of the machine's own
clusters is touched: programs and paths are named in full.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.judges.base import Judge, Steps, Verdict
from tests.kernel.rig import tool

USER = "postgres"
_CLIENTS = 2
_START_S = 120


def postgres(scale: int = 1, *, transactions: int = 100) -> Judge:
    """Each of two clients makes `transactions`. The judge can run again in the same folder: it then goes on there."""

    def judge(folder: Path) -> Verdict:
        with tempfile.TemporaryDirectory(prefix="s3vol-pg-") as socket:
            os.chmod(socket, 0o777)
            return _Cluster(folder / "cluster", Path(socket)).judge(scale, transactions)

    return judge


class _Cluster:
    def __init__(self, data: Path, socket: Path) -> None:
        self._data = data
        self._socket = socket
        self._steps = Steps()

    def judge(self, scale: int, transactions: int) -> Verdict:
        fresh = not self._data.exists()
        if fresh:
            self._data.parent.chmod(0o777)
            self._run("initdb", "initdb", "-k", "-A", "trust", "--wal-segsize=1", "-D", self._data)
        self._start("start")
        try:
            if fresh:
                self._bench("pgbench -i", "-q", "-i", "-s", str(scale))
            self._bench("pgbench", "-n", "-c", str(_CLIENTS), "-t", str(transactions))
            self._compare(transactions)
            self._run("stop in a hurry", "pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")
            self._start("recovery")
            self._compare(transactions)
        finally:
            self._run("stop", "pg_ctl", "-D", self._data, "-m", "fast", "-w", "stop")
        said = self._run("pg_checksums", "pg_checksums", "--check", "-D", self._data)
        self._steps.check("no bad checksums", said is not None and "Bad checksums:  0" in said, str(said))
        return self._steps.verdict()

    def _start(self, name: str) -> None:
        settings = f"-c listen_addresses= -c unix_socket_directories={self._socket} -c max_wal_size=64MB"
        log = self._socket / "log"
        self._run(name, "pg_ctl", "-D", self._data, "-l", log, "-w", "-t", str(_START_S), "-o", settings, "start")

    def _compare(self, transactions: int) -> None:
        """The sums agree, and no transaction that was acknowledged is missing."""
        query = (
            "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),"
            "(select count(*) from pgbench_history)"
        )
        said = self._run("query", "psql", "-h", self._socket, "-d", "postgres", "-Atc", query)
        same, _, count = (said or "").strip().partition("|")
        whole = count.isdigit() and int(count) >= _CLIENTS * transactions and int(count) % _CLIENTS == 0
        self._steps.check("sum(abalance) = sum(delta)", same == "t" and whole, str(said))

    def _bench(self, name: str, *argv: str) -> None:
        self._run(name, "pgbench", "-h", self._socket, *argv, "postgres")

    def _run(self, name: str, program: str, *argv: str | Path) -> str | None:
        return self._steps.run(name, _program(program), *argv, user=USER, cwd=self._socket, extra={"LC_ALL": "C.UTF-8"})


def _program(name: str) -> str:
    """Debian keeps the server's programs beside its library, by major version, and not on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    return str(found[-1]) if found else tool(name)
