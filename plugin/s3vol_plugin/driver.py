"""The verbs of Docker's volume driver protocol, apart from HTTP: what each one promises.

Theory of operation. A verb takes a `Request`, returns the reply's JSON object, and raises S3volError; `http` decides
what an error looks like on the wire, by the kind of verb:

* Questions (Get, List, Path) are answered from memory. NotFound is "no such volume", which dockerd believes for good;
  any other error means "it cannot be known", and the connection is closed without a reply.
* Orders (Create, Mount, Remove) answer their error as text. They are undone completely then.
* Unmount never fails: dockerd keeps the ID and ends the container whatever we say.

A Mount says that this node holds the volume, and then reads the record again; a Remove turns the record into a
tombstone, and then reads again who holds it. Whichever comes second sees the first, so no data is deleted under a
mount of another node, and none is mounted that is being deleted.

Deadlines are below dockerd's own (moby v20.10 volume/drivers/proxy.go: 120 s for Create and Mount, 60 s else),
because dockerd neither undoes nor repeats what it gave up on. A Mount waits for a bucket that does not answer as long
as every operation of that volume does, by its option `timeout`, and leaves time for a change that is on its way then:
a store waits for the end of it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import trio

from s3vol.errors import NotFound, S3volError, Unavailable, UsageError
from s3vol_plugin import references
from s3vol_plugin.access import mount_options
from s3vol_plugin.deadline import until
from s3vol_plugin.node import Node
from s3vol_plugin.report import created_at, volume_status
from s3vol_plugin.state import Record
from s3vol_plugin.volume import Volume, is_name

CREATE_S, MOUNT_S, UNMOUNT_S, REMOVE_S = 30.0, 100.0, 45.0, 45.0
CLAIM_MAX_S = 60.0
_REMOVE_DRAIN_S = 20.0  # nobody uses it, so there is hardly anything to publish
_UNDO_S = 15.0  # 115 s in all for a Mount, still below dockerd's 120
_UNDELETE_S = 10.0  # 55 s in all for a Remove, still below dockerd's 60
_AGAIN_S = 1.0  # between two questions to a registry that does not answer
_TRIES = 3  # of a Mount, when the name becomes another volume meanwhile

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """What dockerd sent. `gone` says whether it has hung up since."""

    name: str = ""
    id: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    gone: Callable[[], bool] = lambda: False


Reply = Mapping[str, Any]


class MakeVolume(Protocol):
    """Decides what a new volume is, from its name and options. Raises UsageError. No I/O."""

    def __call__(self, name: str, options: Mapping[str, str]) -> Volume: ...


class DeleteObjects(Protocol):
    """Deletes the objects of a removed volume, by the store and below its prefix only."""

    def __call__(self, volume: Volume) -> Awaitable[object]: ...


class Prepare(Protocol):
    """Makes what a new volume needs in its store, as its options say. Raises S3volError."""

    def __call__(self, volume: Volume, options: Mapping[str, str], /) -> Awaitable[object]: ...


async def _nothing(volume: Volume, options: Mapping[str, str]) -> None:
    """For a driver without a store."""


class Driver:
    """The verbs. They may run at the same time; what must not is ordered by the lock of the volume (`node`)."""

    def __init__(
        self, node: Node, make_volume: MakeVolume, delete_objects: DeleteObjects, prepare: Prepare = _nothing
    ) -> None:
        self._node = node
        self._make_volume = make_volume
        self._prepare = prepare
        self._delete_objects = delete_objects
        self.on_activate: Callable[[], None] = lambda: None  # a dockerd has started; must not block

    # Questions.

    async def activate(self, request: Request) -> Reply:
        """The first call of a new dockerd."""
        self.on_activate()
        return {"Implements": ["VolumeDriver"]}

    async def capabilities(self, request: Request) -> Reply:
        """Volumes are the same on all nodes."""
        return {"Capabilities": {"Scope": "global"}}

    async def get(self, request: Request) -> Reply:
        """One volume. Raises NotFound, and Unavailable when it cannot be known."""
        return {"Volume": self._describe(await self._find(request.name), whole=True)}

    async def list(self, request: Request) -> Reply:
        """All volumes. Raises Unavailable when they cannot be known."""
        return {"Volumes": [self._describe(volume, whole=False) for volume in await self._node.names.all_or_ask()]}

    async def path(self, request: Request) -> Reply:
        """Where a volume is mounted, or would be: never empty, for dockerd binds what it is told."""
        return {"Mountpoint": str(self._node.settings.mountpoint((await self._find(request.name)).uuid))}

    async def _find(self, name: str) -> Volume:
        if (volume := await self._node.names.find(name)) is None:
            raise NotFound("no such volume")
        return volume

    def _describe(self, volume: Volume, *, whole: bool) -> Mapping[str, Any]:
        values: dict[str, Any] = {"Name": volume.name}
        if (worker := self._node.workers.get(volume.uuid)) is not None:
            values["Mountpoint"] = worker.mountpoint
        if whole:
            values |= created_at(volume)
            values["Status"] = volume_status(self._node, volume)
        return values

    # Create.

    async def create(self, request: Request) -> Reply:
        """Put a new volume into the registry. The same volume again is success: two nodes may create it at once."""
        if not is_name(request.name):
            raise UsageError("name: 1 to 128 letters, digits, `_`, `.` or `-`, of which the first is a letter or digit")
        wanted = self._make_volume(request.name, request.options)
        with trio.move_on_after(CREATE_S) as scope:
            await self._prepare(wanted, request.options)
            made = await self._node.registry.create(wanted)
        if scope.cancelled_caught:
            raise Unavailable(f"the registry of volumes does not answer within {CREATE_S:g} s; try again")
        if _substance(made) != _substance(wanted):
            raise UsageError(
                f"a volume of this name exists already, for {made.source} (made on {made.created_by}), with other "
                "options; choose another name, or remove it first"
            )
        log.info("created", extra={"volume": made.name, "source": made.source})
        return {}

    # Mount.

    async def mount(self, request: Request) -> Reply:
        """Serve a volume here, and count the use. Undone completely when it fails or nobody waits for it any more."""
        where = {"volume": request.name, "id": request.id}
        with trio.move_on_after(MOUNT_S):
            await self._node.adopted.wait()
            mountpoint = await self._mount(request, trio.current_time() + MOUNT_S)
            log.info("in use", extra=where)
            return {"Mountpoint": mountpoint}
        raise Unavailable(f"not mounted within {MOUNT_S:g} s; `s3vol doctor --docker` says why")

    async def _mount(self, request: Request, deadline_s: float) -> str:
        volume = self._node.names.known(request.name)
        for _ in range(_TRIES):
            if not is_name(request.name):
                raise NotFound("no such volume")  # what was asked for is not repeated: it may be anything
            volume = volume or await self._insist(request.name, deadline_s)
            if volume is None:
                raise NotFound(f"no such volume; `docker volume create -d s3vol {request.name}` makes it")
            async with self._node.lock(volume.uuid):
                mountpoint, volume = await self._mount_one(volume, request, deadline_s)
            if mountpoint:
                return mountpoint
        raise Unavailable("removed and made anew while it was being mounted; try again")

    async def _mount_one(self, volume: Volume, request: Request, deadline_s: float) -> tuple[str, Volume | None]:
        """Mount point; or "" and what has the name now. The lock is held."""
        node, uuid = self._node, volume.uuid
        before = node.state.get(uuid)
        refs = before.refs if before else {}
        try:
            served = node.workers.get(uuid) is not None  # without a record (it was damaged): what it journals is owed
            await node.state.save(
                replace(before or Record(volume, dirty=served), refs=references.taken(refs, request.id))
            )
            if node.workers.get(uuid) is None:
                current = await self._claim(volume, deadline_s)
                if current is None or current.uuid != uuid:
                    await self._undo(volume, refs)
                    return "", current
                volume = current
            worker = await node.start(volume, deadline_s=deadline_s - trio.current_time())
            if not worker.mountpoint:
                raise S3volError("the mount process has no mount point")
            if request.gone():
                raise Unavailable("dockerd hung up while the volume was being mounted")
        except BaseException as error:
            log.error("not mounted: %s", error or type(error).__name__, extra={"volume": volume.name, "id": request.id})
            with trio.move_on_after(_UNDO_S, shield=True):
                await self._undo(volume, refs)
            raise
        node.facts(uuid).mounted_at_s = trio.current_time()
        return worker.mountpoint, None

    async def _undo(self, volume: Volume, refs: references.Refs) -> None:
        """Take back a Mount: the counts as before, and the rest when there are none. The lock is held.

        What the process may have to publish, and what the bucket has to be told, is not waited for here.
        """
        await self._node.put_back(volume.uuid, refs)
        if not refs:
            self._node.tasks.start_soon(self._retire, volume.uuid)

    async def _claim(self, volume: Volume, deadline_s: float) -> Volume | None:
        """Say that this node has the volume; returns what has the name after that.

        The bucket is waited for as long as the volume's `timeout` says, CLAIM_MAX_S at most. Raises S3volError then,
        which names the bucket.
        """
        registry, settings = self._node.registry, self._node.settings
        patience_s = min(mount_options(volume, settings).timeout, CLAIM_MAX_S)
        until_s = min(deadline_s, trio.current_time() + patience_s)
        what = f"the registry of volumes ({settings.registry_place})"
        late = f"{what} does not answer within {patience_s:g} s; try again when it does"
        with until(until_s, late):
            await _insist(lambda: registry.hold(volume), until_s)
            return await self._insist(volume.name, until_s)

    async def _insist(self, name: str, deadline_s: float) -> Volume | None:
        return await _insist(lambda: self._node.registry.find(name), deadline_s) if is_name(name) else None

    # Unmount.

    async def unmount(self, request: Request) -> Reply:
        """Count one use less, and unmount when there is none. What takes longer than UNMOUNT_S goes on behind."""
        done = trio.Event()
        self._node.tasks.start_soon(self._unmount, request, done)
        with trio.move_on_after(UNMOUNT_S):
            await done.wait()
        return {}

    async def _unmount(self, request: Request, done: trio.Event) -> None:
        node, where = self._node, {"volume": request.name, "id": request.id}
        try:
            await node.adopted.wait()
            records = node.state.named(request.name)
            uuids = [record.volume.uuid for record in records if request.id in record.refs] or [
                record.volume.uuid for record in records
            ]
            for uuid in uuids:
                async with node.lock(uuid):
                    await self._give_back(uuid, request.id)
            log.info("no longer in use", extra=where)
            for uuid in uuids:
                await node.retire(uuid, patience_s=UNMOUNT_S)
        except Exception:  # behind the reply: nobody else would hear of it, and it must not end the daemon
            log.exception("unmount failed; it is tried again", extra=where)
        finally:
            done.set()

    async def _give_back(self, uuid: str, identity: str) -> None:
        """Counts that dockerd lost in a crash are dropped here too, if the kernel proves it. The lock is held."""
        node = self._node
        if (record := node.state.get(uuid)) is None:
            return
        refs = references.returned(record.refs, identity)
        if refs and references.leaked(refs, in_use=bool(await node.uses(record)), quiet_s=node.quiet_s(uuid)):
            log.warning("left-over references dropped: %d", len(refs), extra={"volume": record.volume.name})
            refs = {}
        await node.put_back(uuid, refs)

    async def _retire(self, uuid: str) -> None:
        try:
            await self._node.retire(uuid, patience_s=UNMOUNT_S)
        except Exception:
            log.exception("unmount failed; it is tried again")

    # Remove.

    async def remove(self, request: Request) -> Reply:
        """Turn the volume into a tombstone, and delete its objects if it was made so. Raises UsageError when used."""
        with trio.move_on_after(REMOVE_S):
            await self._node.adopted.wait()
            volume = await self._find(request.name)
            async with self._node.lock(volume.uuid):
                await self._remove(volume)
            return {}
        raise Unavailable(f"not removed within {REMOVE_S:g} s; try again")

    async def _remove(self, volume: Volume) -> None:
        node = self._node
        if volume.sticky:
            raise UsageError(f"is sticky; `s3vol volume rm {volume.name}` removes it")
        await self._leave(volume)
        await self._check_holders(volume)
        await self._bury(volume)
        try:
            await self._check_holders(volume)
        except BaseException:  # somebody mounted it in the same moment, or that cannot be known in time
            await self._bring_back(volume)
            raise
        log.info("removed (%s)", volume.on_remove, extra={"volume": volume.name, "source": volume.source})
        if volume.on_remove == "delete":
            node.tasks.start_soon(self._delete, volume)
        if node.state.get(volume.uuid) is not None:  # what is not published goes with the objects
            with trio.CancelScope(shield=True):  # for RELEASE_S at most: it is removed, so nobody is told otherwise
                await node.drop(volume)

    async def _leave(self, volume: Volume) -> None:
        """Stop serving the volume here, or say why not. The lock is held.

        The record of what is not published stays: the removal may still be refused, and then it is to be published.
        """
        node = self._node
        record = node.state.get(volume.uuid)
        if record is None:
            if node.workers.get(volume.uuid) is None:
                return
            record = Record(volume, dirty=True)  # it was damaged; the process and its users are there all the same
            await node.state.save(record)
        uses = len(await node.uses(record))
        if uses or record.refs:
            count = max(uses, len(record.refs))
            raise UsageError(f"in use on this node ({node.settings.node}) by {count} containers; remove them first")
        if node.workers.get(volume.uuid) is not None:
            left = await node.stop(volume, drain_s=_REMOVE_DRAIN_S)
            unpublished = bool(left.files or left.bytes)
        else:
            unpublished = record.dirty
        if unpublished and volume.on_remove == "retain":
            raise UsageError(
                f"this node ({node.settings.node}) has data of it that is not published yet; this happens as soon as "
                "the bucket answers, then remove it again"
            )
        if not unpublished:
            await node.drop(volume)

    async def _bury(self, volume: Volume) -> None:
        try:
            await self._node.registry.remove(volume)
        except UsageError:  # refused: what has the name now is another volume, and not touched
            raise
        except BaseException:  # the answer was lost, or the time ended before it came: the tombstone may stand
            await self._bring_back(volume)
            raise

    async def _bring_back(self, volume: Volume) -> None:
        """Undo a removal. The error that led here is what the user is told."""
        with trio.move_on_after(_UNDELETE_S, shield=True):
            try:
                await self._node.registry.undelete(volume.name)
            except S3volError as error:  # as a rule because the tombstone was never made
                log.warning("a removal was not undone: %s", error, extra={"volume": volume.name})

    async def _check_holders(self, volume: Volume) -> None:
        holders = await self._node.registry.holders(volume)
        others = sorted({holder.node for holder in holders} - {self._node.settings.node})
        if others:
            raise UsageError(f"mounted on {', '.join(others)}; stop the containers there first")

    async def _delete(self, volume: Volume) -> None:
        """Behind the reply: a million objects take longer than dockerd waits."""
        where = {"volume": volume.name, "source": volume.source}
        try:
            await self._delete_objects(volume)
            log.info("its objects are deleted", extra=where)
        except Exception as error:
            log.exception("its objects are not all deleted: %s", error, extra=where)


def _substance(volume: Volume) -> tuple[object, ...]:
    """What makes two volumes of one name the same for the user."""
    return volume.source, dict(volume.options), volume.credentials, volume.on_remove, volume.sticky


async def _insist(ask: Callable[[], Awaitable[T]], deadline_s: float) -> T:
    """Ask again while the bucket does not answer: a node and its MinIO may be starting together."""
    while True:
        try:
            return await ask()
        except S3volError as error:
            if not error.retryable or trio.current_time() + _AGAIN_S >= deadline_s:
                raise
        await trio.sleep(_AGAIN_S)
