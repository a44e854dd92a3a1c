"""The agent's persisted state: its instances, and those that were ended without being known.

`DIR/ID.json` holds one instance, mode 0600. It is replaced in one step and synced before the message is
acknowledged. `DIR/ended` lists the ended ids. The environment of a message has the worker's token and may
hold a function's secrets.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from nvcf_agent.errors import StoreError
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import Category, ManagedInstance, Phase
from nvcf_agent.state.request_status import request_status
from nvcf_broker.files import private_directory, write_private
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.icms.reports import InstanceState
from nvcf_proto.models.record import Count, Record, Text, decode_object

_log = logging.getLogger(__name__)

T = TypeVar("T")

ENDED_FILE = "ended"
MOST_ENDED = 10_000
# An order of the versions before the contract was NVIDIA's; it had a message id and no request id.
_OLD_MEMBER = "messageId"


class StoredInstance(Record, frozen=True, kw_only=True):
    """The persisted part of a ManagedInstance. `request_status` is for readers of the file."""

    cluster_id: Text
    request_status: Text = ""
    order: CreationMessage
    phase: Phase
    created_at: float
    updated_at: float
    index: Count = 0
    slots: Count = 0
    devices: tuple[Count, ...] = ()
    gpu: Text = ""
    gpus: Count = 0
    nodes: Count = 1
    node: Text = ""
    acknowledged: bool = False
    category: Category | None = None
    cause: Cause | None = None
    reason: Text | None = None
    restarts: Count = 0
    has_run: bool = False
    log_path: Text | None = None
    ready_at: float | None = None
    draining_since: float | None = None
    grace: float = 30.0
    cleaned: bool = False
    held: tuple[Text, ...] = ()
    reported: InstanceState | None = None
    exit_code: int | None = None

    @classmethod
    def of(cls, instance: ManagedInstance, cluster_id: str) -> Self:
        """Return the persisted part of an instance."""
        return cls(
            cluster_id=cluster_id,
            request_status=request_status((instance,)).value,
            **{each.name: getattr(instance.share, each.name) for each in _SHARE},
            **{name: getattr(instance, name) for name in _SAME},
        )

    def restored(self) -> ManagedInstance:
        """Return the instance."""
        same = {name: getattr(self, name) for name in _SAME}
        share = Share(**{each.name: getattr(self, each.name) for each in _SHARE})
        return ManagedInstance(share=share, **same)


_SHARE = fields(Share)
_OWN = ("cluster_id", "request_status", *(each.name for each in _SHARE))
_SAME = [name for name in StoredInstance.__struct_fields__ if name not in _OWN]


class EndedInstance(Record, frozen=True, kw_only=True):
    """An instance that was ended without being known here, and the Unix time until it is remembered."""

    request_id: Text
    cause: Cause = Cause.BY_USER
    until: float
    reported: bool = False


class Store(Protocol):
    """Where the state is persisted: files here, custom resources in a Kubernetes cluster.

    Every call raises `StoreError` when it fails.
    """

    async def load(self) -> tuple[list[StoredInstance], dict[str, EndedInstance]]:
        """Return all instances, and the ended ones by id."""
        ...

    async def save(self, instances: Mapping[str, StoredInstance]) -> None:
        """Store instances by id, durably."""
        ...

    async def forget(self, instance_id: str) -> None:
        """Remove an instance."""
        ...

    async def save_ended(self, ended: Mapping[str, EndedInstance]) -> None:
        """Store the ended instances by id."""
        ...


class FileStore:
    """Stores the state as files of one folder. An unreadable file is renamed and logged."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def load(self) -> tuple[list[StoredInstance], dict[str, EndedInstance]]:
        return await _in_thread(self._load)

    def _load(self) -> tuple[list[StoredInstance], dict[str, EndedInstance]]:
        private_directory(self._directory)
        instances = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                members = decode_object(path.read_bytes(), path.name)
                if _OLD_MEMBER in (members.get("order") or {}):
                    _log.warning("%s is of an older version: the control plane orders it again", path)
                    path.unlink()
                    continue
                stored = StoredInstance.from_dict(members)
                if stored.restored().id != path.stem:
                    raise InvalidRecord("order", f"is of instance {stored.restored().id}")
                instances.append(stored)
            except (InvalidRecord, ValueError, AttributeError, TypeError) as error:
                _log.error("cannot read the instance in %s, the file is renamed: %s", path, error)
                path.replace(path.with_suffix(".unreadable"))
        return instances, self._load_ended()

    def _load_ended(self) -> dict[str, EndedInstance]:
        path = self._directory / ENDED_FILE
        try:
            members: dict[str, Any] = decode_object(path.read_bytes(), ENDED_FILE)
        except FileNotFoundError:
            return {}
        except InvalidRecord as error:
            _log.error("cannot read %s: %s", path, error)
            return {}
        found = {}
        for instance_id, value in members.items():
            try:
                found[instance_id] = EndedInstance.from_dict(value)
            except InvalidRecord as error:
                _log.error("%s: %s is left out: %s", path, instance_id, error)
        return found

    async def save(self, instances: Mapping[str, StoredInstance]) -> None:
        listed = dict(instances)
        await _in_thread(lambda: self._save(listed))

    def _save(self, instances: dict[str, StoredInstance]) -> None:
        for instance_id, instance in instances.items():
            write_private(self._directory / f"{instance_id}.json", json.dumps(instance.to_dict()))

    async def forget(self, instance_id: str) -> None:
        await _in_thread(lambda: (self._directory / f"{instance_id}.json").unlink(missing_ok=True))

    async def save_ended(self, ended: Mapping[str, EndedInstance]) -> None:
        text = json.dumps({key: each.to_dict() for key, each in ended.items()})
        await _in_thread(lambda: write_private(self._directory / ENDED_FILE, text))


async def _in_thread(work: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise StoreError(f"cannot use the agent's folder: {error}") from error


class PersistedState:
    """What the store holds, so that nothing is written twice or left out.

    `ended` are the instances that were ended without being known, by id.
    """

    def __init__(self, store: Store, cluster_id: str) -> None:
        self._store = store
        self._cluster_id = cluster_id
        self._saved: dict[str, StoredInstance] = {}
        self._newest: dict[str, StoredInstance] = {}
        # Instances never change, they are replaced: one that was looked at needs no comparison.
        self._looked_at: dict[str, ManagedInstance] = {}
        self.ended: dict[str, EndedInstance] = {}

    async def load(self) -> list[ManagedInstance]:
        """Return the instances of the cluster that an earlier run stored. Raises `StoreError`."""
        found, self.ended = await self._store.load()
        mine = {each.restored().id: each for each in found if each.cluster_id == self._cluster_id}
        self._saved = mine
        return [each.restored() for each in mine.values()]

    def has(self, instance: ManagedInstance) -> bool:
        """Return whether an instance is stored as it is now."""
        return self._saved.get(instance.id) == StoredInstance.of(instance, self._cluster_id)

    async def save(self, listed: Iterable[ManagedInstance]) -> None:
        """Store what has changed of these instances. Raises `StoreError`."""
        new = {each.id: each for each in listed if self._looked_at.get(each.id) is not each}
        stored = {key: StoredInstance.of(each, self._cluster_id) for key, each in new.items()}
        fresh = {key: each for key, each in stored.items() if self._saved.get(key) != each}
        if fresh:
            for key, each in fresh.items():
                # Until the newest write has succeeded, nobody knows what the store has.
                self._saved.pop(key, None)
                self._newest[key] = each
            await self._store.save(fresh)
            self._saved |= {key: each for key, each in fresh.items() if self._newest.get(key) is each}
        self._looked_at |= new

    async def save_ended(self, changed: Mapping[str, EndedInstance], wall: float) -> None:
        """Add or change ended instances, and drop expired ones. Raises `StoreError`."""
        ended = {key: each for key, each in self.ended.items() if each.until > wall} | dict(changed)
        while len(ended) > MOST_ENDED:
            del ended[next(iter(ended))]
        await self._store.save_ended(ended)
        self.ended = ended

    async def forget(self, instance_id: str) -> None:
        """Remove an instance. Raises `StoreError`."""
        await self._store.forget(instance_id)
        self._saved.pop(instance_id, None)
        self._newest.pop(instance_id, None)
        self._looked_at.pop(instance_id, None)
