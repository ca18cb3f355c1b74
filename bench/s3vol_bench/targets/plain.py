"""The endpoint without a file system: what each row can be at most. obstore, with as many requests at a time as s3vol
may send (8) and the same ranges (8 MiB).

Each figure does what the bucket has to see of the row, and no more: a created file is one PUT, a rename one copy and
one delete, a listing one LIST a thousand keys. Rows that need no request have no limit here.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.store import S3Store

from s3vol_bench.endpoint import Endpoint
from s3vol_bench.promise import Pattern
from s3vol_bench.rows import Sizes
from s3vol_bench.work import listing, programs, scattered, small
from s3vol_bench.work.place import body, spread, touch_memory

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config
RANGE_BYTES = 8 << 20
CONCURRENCY = 8  # the default of `downloads` and `uploads`
_PART_BYTES = 8 << 20
_FIVE_BYTES = 5 << 20


def _store(endpoint: Endpoint) -> S3Store:
    options: ClientConfig = {
        "allow_http": endpoint.url.startswith("http://"),
        "timeout": timedelta(seconds=300),
        "allow_invalid_certificates": not endpoint.verify_tls,
    }
    if endpoint.ca_bundle:
        options["root_certificate"] = Path(endpoint.ca_bundle).read_bytes()
    config: S3Config = {
        "endpoint": endpoint.url,
        "access_key_id": endpoint.access_key,
        "secret_access_key": endpoint.secret_key,
        "region": endpoint.region,
        "virtual_hosted_style_request": not endpoint.path_style,
        "disable_bulk_delete": True,  # a file that is deleted is one request
    }
    if endpoint.session_token:
        config["session_token"] = endpoint.session_token
    return S3Store(endpoint.bucket, config=config, client_options=options)


class Plain:
    """One session of requests below a prefix of its own. Rows are called in the order of the session."""

    def __init__(self, endpoint: Endpoint, below: str, sizes: Sizes, pattern: bytes) -> None:
        self._store = _store(endpoint)
        self._base = endpoint.prefix + below
        self._shared = endpoint.prefix
        self._sizes = sizes
        self._pattern = pattern
        self.rows: dict[str, Callable[[], float]] = {
            "write-1": lambda: self._write(["large"], sizes.large_bytes),
            "write-4": lambda: self._write([f"four{n}" for n in range(4)], sizes.medium_bytes),
            "write-direct": lambda: self._write(["direct"], sizes.medium_bytes),
            "write-5m": self._write_5m,
            "read-cold-1": lambda: self._read(["large"], sizes.large_bytes),
            "read-cold-4": lambda: self._read([f"four{n}" for n in range(4)], sizes.medium_bytes),
            "read-direct": lambda: self._read(["direct"], sizes.medium_bytes),
            "read-5m": self._read_5m,
            "prepare": self._prepare,
            "append-fsync": self._append,
            "ttfb": self._first_byte,
            "randread-4k-cold": self._random,
            "create-1": lambda: self._create("one", 1),
            "create-8": lambda: self._create("eight", 8),
            "one-byte": self._one_byte,
            "create-empty-100": lambda: self._create_empty(100),
            "create-empty-1000": lambda: self._create_empty(1000),
            "create-empty-10000": lambda: self._create_empty(10_000),
            "stat-cold": lambda: 2 * sizes.small_files / self._list(self._base),
            "read-small-cold-1": lambda: self._get("one", 1),
            "read-small-cold-8": lambda: self._get("eight", 8),
            "rename": self._rename,
            "rename-directory": self._rename_directory,
            "delete-1": lambda: self._delete("one", 1),
            "delete-8": lambda: self._delete("moved", 8),
            "untar": self._untar,
            "list": lambda: self._list(f"{self._shared}{SHARED}"),
        }

    def put(self, name: str, content: bytes) -> None:
        """One PUT."""
        obstore.put(self._store, self._base + name, content, use_multipart=False)

    def _put_all(self, bodies: dict[str, bytes], threads: int) -> float:
        return _timed(lambda: spread(lambda name: self.put(name, bodies[name]), list(bodies), threads))

    def upload(self, name: str, content: bytes) -> None:
        """In parts, side by side."""
        obstore.put(
            self._store,
            self._base + name,
            content,
            use_multipart=True,
            chunk_size=_PART_BYTES,
            max_concurrency=CONCURRENCY,
        )

    def _content(self, size: int) -> bytes:
        return Pattern(self._pattern, size).piece(0, size)

    def _write(self, names: list[str], size: int) -> float:
        content = self._content(size)
        touch_memory(len(names) * size)
        seconds = _timed(lambda: spread(lambda name: self.upload(name, content), names, len(names)))
        return len(names) * size / seconds / 1e6

    def _read(self, names: list[str], size: int) -> float:
        async def get(slots: asyncio.Semaphore, name: str, start: int) -> None:
            async with slots:
                end = min(size, start + RANGE_BYTES)
                await obstore.get_range_async(self._store, self._base + name, start=start, end=end)

        async def all_of_it() -> None:
            slots = asyncio.Semaphore(CONCURRENCY)
            await asyncio.gather(*(get(slots, name, start) for start in range(0, size, RANGE_BYTES) for name in names))

        touch_memory(len(names) * size)
        return len(names) * size / _timed(lambda: asyncio.run(all_of_it())) / 1e6

    def _write_5m(self) -> float:
        bodies = {f"five{number}": self._content(_FIVE_BYTES) for number in range(self._sizes.files_5m)}
        return len(bodies) * _FIVE_BYTES / self._put_all(bodies, 1) / 1e6

    def _read_5m(self) -> float:
        names = [f"five{number}" for number in range(self._sizes.files_5m)]
        return len(names) * _FIVE_BYTES / _timed(lambda: spread(self._fetch, names, 1)) / 1e6

    def _fetch(self, name: str) -> int:
        return len(obstore.get(self._store, self._base + name).bytes())

    def _prepare(self) -> float:
        self.upload("random", self._content(self._sizes.medium_bytes))
        bodies = {f"first{number}": self._content(scattered.FIRST_SIZE) for number in range(scattered.FIRST_BYTES)}
        return self._put_all(bodies, 1)

    def _append(self) -> float:
        appends = self._sizes.appends
        contents = [scattered.APPENDED * count for count in range(1, appends + 1)]
        return appends / _timed(lambda: spread(lambda content: self.put("appended", content), contents, 1))

    def _first_byte(self) -> float:
        def one(number: int) -> None:
            obstore.get_range(self._store, f"{self._base}first{number}", start=0, end=1)

        return _median_ms(one, scattered.FIRST_BYTES)

    def _random(self) -> float:
        count, size = 0, self._sizes.medium_bytes
        end_s = time.perf_counter() + self._sizes.random_s
        while time.perf_counter() < end_s:
            start = (count * 2654435761 % (size >> 12)) << 12  # Knuth's multiplicative hash: spread, no generator
            obstore.get_range(self._store, self._base + "random", start=start, end=start + 4096)
            count += 1
        return count / self._sizes.random_s

    def _create(self, folder: str, threads: int) -> float:
        bodies = {name: body(name) for name in small.names(folder, self._sizes.small_files)}
        return len(bodies) / self._put_all(bodies, threads)

    def _create_empty(self, count: int) -> float:
        return count / self._put_all({f"empty-{count}/{number}": b"" for number in range(count)}, 1)

    def _one_byte(self) -> float:
        def one(number: int) -> None:
            self.put(f"byte{number}", b"x")

        return _median_ms(one, small.ONE_BYTES)

    def _get(self, folder: str, threads: int) -> float:
        names = small.names(folder, self._sizes.small_files)
        return len(names) / _timed(lambda: spread(self._fetch, names, threads))

    def _move(self, old: str, new: str) -> None:
        obstore.copy(self._store, self._base + old, self._base + new)
        obstore.delete(self._store, self._base + old)

    def _rename(self) -> float:
        half = small.names("one", self._sizes.small_files // 2)
        return len(half) / _timed(lambda: spread(lambda name: self._move(name, f"{name}.renamed"), half, 1))

    def _rename_directory(self) -> float:
        names = small.names("eight", self._sizes.small_files)
        return _timed(
            lambda: spread(lambda name: self._move(name, name.replace("eight", "moved", 1)), names, CONCURRENCY)
        )

    def _delete(self, folder: str, threads: int) -> float:
        names = self._keys(f"{self._base}{folder}/")
        return len(names) / _timed(lambda: spread(lambda key: obstore.delete(self._store, key), names, threads))

    def _keys(self, prefix: str) -> list[str]:
        return [str(row["path"]) for page in obstore.list(self._store, prefix=prefix) for row in page]

    def _list(self, prefix: str) -> float:
        return _timed(lambda: self._keys(prefix))

    def _untar(self) -> float:
        return self._put_all({f"untar/{n}": data for n, data in programs.tree(self._sizes.untar_files).items()}, 1)

    def put_numbered(self, first: int, last: int) -> None:
        """Objects of one byte: `f0`, `f1`, ..."""
        spread(lambda number: self.put(f"f{number}", b"x"), range(first, last), 2 * CONCURRENCY)

    def put_shared(self) -> None:
        """Put the tree of the session `listing`, once a run."""
        names = [f"{self._shared}{SHARED}{path}" for path in listing.paths(self._sizes.listed_files)]
        spread(lambda key: obstore.put(self._store, key, listing.CONTENT), names, CONCURRENCY)


SHARED = "shared/"


def _timed(work: Callable[[], Iterable[object] | None]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _median_ms(work: Callable[[int], None], count: int) -> float:
    took_s = []
    for number in range(count):
        began_s = time.perf_counter()
        work(number)
        took_s.append(time.perf_counter() - began_s)
    return statistics.median(took_s) * 1000
