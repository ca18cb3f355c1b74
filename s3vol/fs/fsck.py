"""What is wrong with what s3vol keeps in a bucket, and what would mend it: from a listing to findings. Pure.

Theory of operation. A `Survey` is shown every object once, in the order of a listing, and keeps only what is s3vol's
own, so its memory does not grow with the files of the bucket. `judge` then compares: records with bodies and stubs,
times with the store's clock. A finding is `young` while another node may still be in the middle of it: within the time
after which the product itself takes such a thing for left behind, or longer where the product never does. What is
young is shown and not repaired.

A listing of many pages is no snapshot. So one look proves nothing about two objects: `agreed` believes what two looks,
one after the other, both say of the same versions, and takes the rest for young.

No repair touches content that can be read at a name, and where content may be somebody's last copy (a body whose names
or record are gone) there is none: the finding says where the content is and leaves it to people.

Rejected: rebuilding a lost record from the stubs that are found (a stub that a listing missed, or that is in a backup,
would lose its content with the last of the others), and showing names that are counted and gone (docs/format.md allows
them: other tools may delete stubs).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from s3vol import layout
from s3vol.fs import intents, links
from s3vol.fs.intents import Intent
from s3vol.fs.linkrecord import Record
from s3vol.store.base import Upload
from s3vol.types import ObjectInfo

TOMBSTONE_S = 60.0  # its writer deletes within 5 s, others take it over after 15 s (objects.py)
FOREIGN_S = 60.0  # two objects that do not go together: one of them may just be going
PROBE_S = 3600.0  # a probe takes a second, and gives up after a minute
KEPT_S = 7 * 86_400.0  # orphans live as long as a program has the file open, uploads as long as a file is written

_PROBES = f"{layout.RESERVED}probe/"
_OTHERS = tuple(layout.RESERVED + name for name in ("volumes/", "mounts/", "leases/", "journal/", "format.json"))
_LINKS_BELOW = f"/{layout.LINKS}"
_READ_MAX_BYTES = 1 << 20  # a record of 4,096 names has 80 KiB


class Repair(enum.Enum):
    """What is done about a finding; in the order in which a mount does it."""

    DISCARD = "removes it"
    REAP = "removes it, as the next writer of the name would"
    RENAME = "finishes the rename, as a mount would"
    LINK = "decides by the names that are there and ends it, as a mount would"
    COUNT = "counts it as a name of its own"
    ABORT = "aborts the upload; a node that still writes it begins it anew"
    NOTHING = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be.

    `meaning` is for people; `way` says what they can do where there is no repair. `info` is the version that was
    judged; a repair is conditional on it.
    """

    kind: str
    key: str
    meaning: str
    repair: Repair
    young: bool = False
    way: str = ""
    info: ObjectInfo | None = None
    record: Record | None = None
    upload_id: str = ""

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """Equal for the same finding about the same version."""
        return self.kind, self.key, self.info.etag if self.info else "", self.upload_id

    @property
    def advice(self) -> str:
        """What `--repair` does, or what else helps."""
        does = f"leaves it: {self.way}" if self.repair is Repair.NOTHING else self.repair.value
        return f"--repair {does}"


@dataclass(slots=True)
class Survey:
    """What a listing showed of s3vol's own objects, and findings about single objects."""

    now_ns: int  # by the store's clock, before the first request
    own: dict[str, ObjectInfo] = field(default_factory=dict)  # records, bodies and intents, by key
    stubs: dict[str, dict[str, ObjectInfo]] = field(default_factory=dict)  # by link and path
    found: list[Finding] = field(default_factory=list)
    volumes: set[str] = field(default_factory=set)  # prefixes within this one that are volumes with links of their own
    _files: list[ObjectInfo] = field(default_factory=list)  # whose keys are prefixes of the key seen last

    def show(self, info: ObjectInfo) -> None:
        """One object, in byte order of the keys, with its metadata where that could be asked for."""
        key, is_tombstone = info.key, layout.is_tombstone(info)
        if is_tombstone:
            self._add(
                "tombstone", info, "its name was renamed away or removed, and is not free yet", Repair.REAP, TOMBSTONE_S
            )
        elif layout.is_reserved(key):
            self._reserved(info)
        else:
            link = layout.link_of(info)
            if link is not None:
                self.stubs.setdefault(link.id, {})[key] = info
            if _LINKS_BELOW in key:
                self.volumes.add(key[: key.index(_LINKS_BELOW) + 1])
            self._marker(info)
        if not is_tombstone:
            self._attributes(info)
            self._beside(info)

    def wanted(self) -> list[ObjectInfo]:
        """Objects whose bodies `judge` needs: intents, and records of links."""
        return [
            info
            for key, info in self.own.items()
            if (key.startswith(layout.INTENTS) or layout.record_id(key)) and info.size <= _READ_MAX_BYTES
        ]

    def _add(
        self, kind: str, info: ObjectInfo, meaning: str, repair: Repair, grace_s: float = FOREIGN_S, way: str = ""
    ) -> None:
        young = is_young(info, self.now_ns, grace_s)
        self.found.append(Finding(kind, info.key, meaning, repair, young, way, info))

    def _reserved(self, info: ObjectInfo) -> None:
        key = info.key
        link_id = layout.record_id(key) or layout.body_id(key)
        if key.startswith(layout.ORPHANS):
            node = key[len(layout.ORPHANS) :].partition("/")[0]
            meaning = f"bytes of a removed file that a program on node {node} had open; its next mount removes them"
            self._add("orphan", info, meaning, Repair.DISCARD, grace_s=KEPT_S)
        elif key.startswith(_PROBES):
            self._add("probe", info, "left by a test of what the endpoint can do", Repair.DISCARD, grace_s=PROBE_S)
        elif (key.startswith(layout.INTENTS) and key.endswith(".json")) or (link_id and layout.is_link_id(link_id)):
            self.own[key] = info
        elif key != layout.ROOT_ATTRIBUTES and not key.startswith(_OTHERS) and (info.size or not key.endswith("/")):
            meaning = "nothing that this version of s3vol keeps here"
            way = "no mount shows it; move it with an S3 tool if it is yours"
            self._add("unknown", info, meaning, Repair.NOTHING, way=way)

    def _marker(self, info: ObjectInfo) -> None:
        if info.key.endswith("/") and info.size:
            meaning = f"the marker of a directory has a body of {info.size} bytes, which no mount shows"
            self._add("marker", info, meaning, Repair.NOTHING, way="copy it to a name without the slash")

    def _attributes(self, info: ObjectInfo) -> None:
        names = layout.unreadable(info.metadata or {})
        if names:
            headers = ", ".join(layout.META_PREFIX + name for name in names)
            way = "chmod, chown and touch in a mount write them anew"
            self._add("attributes", info, f"cannot be read: {headers}; defaults are shown", Repair.NOTHING, way=way)

    def _beside(self, info: ObjectInfo) -> None:
        # Between `a` and `a/...` there are only keys that begin with `a`: what may still get children is a stack.
        while self._files and not info.key.startswith(self._files[-1].key):
            self._files.pop()
        for file in [file for file in self._files if info.key.startswith(f"{file.key}/")]:
            self._files.remove(file)
            newest = replace(file, modified_ns=max(file.modified_ns, info.modified_ns))
            meaning = f"a file and a directory of this name ({info.key}): only one can be shown"
            self._add("beside", newest, meaning, Repair.NOTHING, way="rename one of them with an S3 tool")
        if not info.key.endswith("/"):
            self._files.append(info)


def is_young(info: ObjectInfo, now_ns: int, grace_s: float) -> bool:
    """True when the object changed within `grace_s`, both times by the store's clock."""
    return now_ns - info.modified_ns <= grace_s * 1e9


def judge(
    survey: Survey,
    read: Mapping[str, Intent | Record | None],
    uploads: Iterable[Upload] = (),
) -> list[Finding]:
    """All findings. `read` has what is in the objects of `survey.wanted()`, None for what cannot be understood.

    A wanted object that is not in `read` has changed since it was listed: nothing is said about it.
    """
    found = list(survey.found)
    moving = any(key.startswith(layout.INTENTS) for key in survey.own)
    for key, info in survey.own.items():
        if key.startswith(layout.INTENTS) and (key in read or info.size > _READ_MAX_BYTES):
            found.append(_intent(survey, info, read.get(key)))
    ids = {layout.record_id(key) or layout.body_id(key) for key in survey.own} | survey.stubs.keys()
    for link_id in sorted(it for it in ids if it):
        found += _Link(survey, link_id, moving).judge(read)
    for upload in uploads:
        young = survey.now_ns - upload.begun_ns <= KEPT_S * 1e9
        meaning = "a multipart upload that was begun and never completed: its parts take space"
        found.append(Finding("upload", upload.key, meaning, Repair.ABORT, young, upload_id=upload.id))
    return found


def _intent(survey: Survey, info: ObjectInfo, intent: Intent | Record | None) -> Finding:
    young = is_young(info, survey.now_ns, intents.LEFT_BEHIND_S)
    if isinstance(intent, Intent) and intent.key == info.key:
        meaning = f"node {intent.node} began to rename {intent.source} to {intent.target} at {intent.at}"
        return Finding("rename", info.key, meaning, Repair.RENAME, young, info=info)
    meaning = "cannot be read: the rename of a directory that nobody can finish; files may be at both names"
    return Finding("rename", info.key, meaning, Repair.DISCARD, young, info=info)


@dataclass(frozen=True, slots=True)
class _Link:
    """One hard link: what there is of it."""

    survey: Survey
    id: str
    moving: bool  # directories are being renamed: stubs may be at both names, or at none that was listed

    def judge(self, read: Mapping[str, Intent | Record | None]) -> list[Finding]:
        own, key = self.survey.own, layout.record_key(self.id)
        body, info, stubs = own.get(layout.body_key(self.id)), own.get(key), self.survey.stubs.get(self.id, {})
        record = read.get(key)
        if info is None:
            return self._without_record(body, stubs)
        if not isinstance(record, Record):
            return self._unreadable(info) if key in read or info.size > _READ_MAX_BYTES else []
        if record.doing or record.dead:
            return [self._unfinished(info, record, body, stubs)]
        if body is None and not stubs:
            return [self._finding("link", info, "the record of a hard link without content or names", Repair.DISCARD)]
        if body is None:
            return self._without_body(stubs)
        if not stubs:
            return self._nameless(body)
        return self._copies(record, stubs)

    def _finding(
        self, kind: str, info: ObjectInfo, meaning: str, repair: Repair, record: Record | None = None, way: str = ""
    ) -> Finding:
        young = self.moving or is_young(info, self.survey.now_ns, links.LEFT_BEHIND_S)
        return Finding(kind, info.key, meaning, repair, young, way, info, record)

    def _unfinished(
        self, info: ObjectInfo, record: Record, body: ObjectInfo | None, stubs: Mapping[str, ObjectInfo]
    ) -> Finding:
        began = ", ".join(sorted({it.path for it in record.doing.values()})) or "the last name has gone"
        meaning = f"a change of a hard link was begun: {began}"
        there = {(key, link.token) for key, info in stubs.items() if (link := layout.link_of(info)) is not None}
        gone = {token for token, it in record.doing.items() if (it.path, token) not in there}
        if body is not None and stubs and record.names <= gone:  # the end of it takes the content away
            way = f"first copy what is at {', '.join(sorted(stubs))}, a copy of a name, elsewhere: mounts remove it"
            return self._finding("link", info, meaning, Repair.NOTHING, way=way)
        return self._finding("link", info, meaning, Repair.LINK, record)

    def _unreadable(self, info: ObjectInfo) -> list[Finding]:
        meaning = "the list of a hard link's names cannot be read: its names can be read and written, not moved"
        return [self._finding("link", info, meaning, Repair.NOTHING, way="copy the file under a new name")]

    def _without_record(self, body: ObjectInfo | None, stubs: Mapping[str, ObjectInfo]) -> list[Finding]:
        if body is None:
            return self._without_body(stubs)
        if not stubs:
            return self._nameless(body)
        meaning = f"the list of a hard link's names ({layout.record_key(self.id)}) is gone: they cannot be moved"
        way = "copy the file under a new name, then remove its names ({})".format(", ".join(sorted(stubs)))
        return [self._finding("link", body, meaning, Repair.NOTHING, way=way)]

    def _without_body(self, stubs: Mapping[str, ObjectInfo]) -> list[Finding]:
        # A bucket may hold volumes below prefixes: the content of their links is with them.
        own = [info for key, info in stubs.items() if not any(key.startswith(it) for it in self.survey.volumes)]
        meaning = f"a name of a hard link whose content ({layout.body_key(self.id)}) is gone: reading it fails"
        way = "restore that object from a backup, or remove the name"
        return [self._finding("link", info, meaning, Repair.NOTHING, way=way) for info in own]

    def _nameless(self, body: ObjectInfo) -> list[Finding]:
        meaning = f"content of {body.size} bytes whose names were all removed by another tool"
        way = "copy it to a name with an S3 tool, or delete it and its .names"
        return [self._finding("link", body, meaning, Repair.NOTHING, way=way)]

    def _copies(self, record: Record, stubs: Mapping[str, ObjectInfo]) -> list[Finding]:
        """Stubs that no count knows. Of those with one token the first in byte order is the one that is counted."""
        found: list[Finding] = []
        counted: set[str] = set()
        for _, info in sorted(stubs.items()):
            link = layout.link_of(info)
            assert link is not None, "only stubs are kept as stubs"
            if link.token in record.names and link.token not in counted:
                counted.add(link.token)
                continue
            meaning = (
                "a copy of a hard link's name that another tool made: it loses its content with the last counted name"
            )
            found.append(self._finding("link", info, meaning, Repair.COUNT))
        return found


def agreed(first: Sequence[Finding], second: Sequence[Finding]) -> list[Finding]:
    """The second look's findings; what the first did not say of the same version is young."""
    before = {it.identity for it in first}
    return [it if it.identity in before else replace(it, young=True) for it in second]


def plan(findings: Iterable[Finding]) -> list[Finding]:
    """What a repair does, in order."""
    order = list(Repair)
    wanted = [it for it in findings if not it.young and it.repair is not Repair.NOTHING]
    return sorted(wanted, key=lambda it: order.index(it.repair))
