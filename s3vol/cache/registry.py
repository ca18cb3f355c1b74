"""Registry: which contents exist, by version and by key, and when one is forgotten. Pure but for deleting data files.

Theory of operation. A content is indexed under key and base version while `attach` may hand it out; CONFLICTED and
DISCARDED ones are not, only their holders know them. Contents that nobody refers to and that are CLEAN are mere
cache: they go when nothing of them is left on the disk, or when there are more than `MAX_IDLE` of them, the one
released longest ago first (a content takes about 4 KiB of memory, however small its file is).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from s3vol.cache.base import State
from s3vol.cache.content import CachedContent
from s3vol.cache.disk import DataFiles
from s3vol.types import NONCE, ObjectInfo, Version

MAX_IDLE = 20_000

_Name = tuple[str, Version]


class Registry:
    """Of one cache. `forget(content)` is called for each that is dropped, before its data file is deleted."""

    def __init__(self, files: DataFiles, first_id: int, forget: Callable[[CachedContent], None]) -> None:
        self._files = files
        self._next_id = first_id
        self._forget = forget
        self._by_version: dict[_Name, CachedContent] = {}
        self._names: dict[CachedContent, _Name] = {}
        self._dirty: dict[str, CachedContent] = {}
        self._dirty_keys: dict[CachedContent, str] = {}
        self._idle: OrderedDict[CachedContent, None] = OrderedDict()

    def dirty_at(self, key: str) -> CachedContent | None:
        """The DIRTY content at `key`."""
        content = self._dirty.get(key)
        return content if content is not None and content.state is State.DIRTY else None

    def new_id(self) -> int:
        """A number that no other content of this cache directory ever has."""
        self._next_id += 1
        return self._next_id

    def adopt(self, content: CachedContent) -> None:
        """A content from the journal."""
        self.refresh(content)
        if not content.refs:
            self.idle(content)

    def attach(self, info: ObjectInfo, content_type: str) -> CachedContent:
        """The content of this version, known or new."""
        content = self._by_version.get((info.key, info.version))
        if content is None:
            content = CachedContent(
                id=self.new_id(),
                key=info.key,
                base=info.version,
                size=info.size,
                metadata={name: value for name, value in (info.metadata or {}).items() if name != NONCE},
                content_type=content_type or info.content_type,
                base_limit=info.size,
                low_water=info.size,
            )
            self.refresh(content)
        self.busy(content)
        return content

    def known(self, key: str, version: Version) -> CachedContent | None:
        """The content of this version, if there is one."""
        return self._by_version.get((key, version))

    def changed(self, content: CachedContent) -> None:
        """A content that may just have become DIRTY."""
        if content.state is State.DIRTY and self._dirty.get(content.key) is not content:
            self.refresh(content)

    def refresh(self, content: CachedContent) -> None:
        """Key, base or state changed: the indexes follow. Idempotent."""
        name = self._names.pop(content, None)
        if name is not None and self._by_version.get(name) is content:
            del self._by_version[name]
        alive = content.state in (State.CLEAN, State.DIRTY) and not content.dropped
        if alive and content.base is not None and content.derived:
            name = (content.key, content.base)
            self._names[content] = name
            self._by_version.setdefault(name, content)
        key = self._dirty_keys.pop(content, None)
        if key is not None and self._dirty.get(key) is content:
            del self._dirty[key]
        if content.state is State.DIRTY and not content.dropped:
            self._dirty_keys[content] = content.key
            self._dirty[content.key] = content

    def busy(self, content: CachedContent) -> None:
        """Somebody refers to the content."""
        self._idle.pop(content, None)

    def idle(self, content: CachedContent) -> None:
        """Nobody refers to the content any more."""
        if content.state in (State.DISCARDED, State.CONFLICTED):
            self.drop(content)
        elif content.state is State.CLEAN:
            found = content.base is not None and self._by_version.get((content.key, content.base)) is content
            if not found or (not content.present and not content.fetching):
                self.drop(content)
                return
            self._idle[content] = None
            self._idle.move_to_end(content)
            while len(self._idle) > MAX_IDLE:
                self.drop(next(iter(self._idle)))

    def drop(self, content: CachedContent) -> None:
        """Forget the content and delete its data file."""
        content.dropped = True
        self.refresh(content)
        self._idle.pop(content, None)
        self._forget(content)
        self._files.remove(content.id)
