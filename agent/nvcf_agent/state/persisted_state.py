"""The agent's persisted state: its instances, and the ids that were ended before they came.

`DIR/ID.json` holds one instance, mode 0600. It is replaced in one step and synced before the message is
acknowledged. `DIR/ended` lists the ended ids. The environment that a function declares may contain its
secrets.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, Self, TypeVar

from nvcf_agent.errors import StoreError
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import Category, ManagedInstance, Phase
from nvcf_broker.files import private_directory, write_private
from nvcf_proto.compute import CreationMessage
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.record import Count, Record, Text, decode_object

_log = logging.getLogger(__name__)

T = TypeVar("T")

ENDED_FILE = "ended"


class StoredInstance(Record, frozen=True, kw_only=True):
    """The persisted part of a ManagedInstance."""

    order: CreationMessage
    phase: Phase
    created_at: float
    updated_at: float
    slots: Count = 0
    devices: tuple[str, ...] = ()
    category: Category | None = None
    reason: Text | None = None
    restarts: Count = 0
    has_run: bool = False
    log_path: Text | None = None
    ready_at: float | None = None
    draining_since: float | None = None
    grace: float = 30.0
    published: bool = False

    @classmethod
    def of(cls, instance: ManagedInstance) -> Self:
        """Return the persisted part of an instance."""
        return cls(
            slots=instance.share.slots,
            devices=tuple(str(device) for device in instance.share.devices),
            **{name: getattr(instance, name) for name in _SAME},
        )

    def restored(self) -> ManagedInstance:
        """Return the instance. Raises `InvalidRecord`."""
        if len(self.order.instance_ids) != 1:
            raise InvalidRecord("order", "expected one instance")
        if not all(device.isdigit() for device in self.devices):
            raise InvalidRecord("devices", "expected numbers")
        share = Share(self.slots, tuple(int(each) for each in self.devices))
        return ManagedInstance(share=share, **{name: getattr(self, name) for name in _SAME})


_SAME = [name for name in StoredInstance.__struct_fields__ if name not in ("slots", "devices")]


class Store(Protocol):
    """Where the state is persisted: files here, custom resources in a Kubernetes cluster.

    Every call raises `StoreError` when it fails.
    """

    async def load(self) -> tuple[list[ManagedInstance], dict[str, float]]:
        """Return all instances, and the ids ended before they came with the Unix times to keep them."""
        ...

    async def save(self, instances: Iterable[StoredInstance]) -> None:
        """Store instances durably."""
        ...

    async def forget(self, instance_id: str) -> None:
        """Remove an instance."""
        ...

    async def save_ended(self, ended: dict[str, float]) -> None:
        """Store the ids that were ended before they came."""
        ...


class FileStore:
    """Stores the state as files of one folder. An unreadable file is renamed and logged."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def load(self) -> tuple[list[ManagedInstance], dict[str, float]]:
        return await _in_thread(self._load)

    def _load(self) -> tuple[list[ManagedInstance], dict[str, float]]:
        private_directory(self._directory)
        instances = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                members = decode_object(path.read_bytes(), path.name)
                instances.append(StoredInstance.from_dict(members).restored())
            except (InvalidRecord, ValueError) as error:
                _log.error("cannot read the instance in %s, the file is renamed: %s", path, error)
                path.replace(path.with_suffix(".unreadable"))
        return instances, self._load_ended()

    def _load_ended(self) -> dict[str, float]:
        try:
            document = json.loads((self._directory / ENDED_FILE).read_bytes())
            return {str(key): float(value) for key, value in document.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            _log.error("cannot read %s: %s", self._directory / ENDED_FILE, error)
            return {}

    async def save(self, instances: Iterable[StoredInstance]) -> None:
        listed = list(instances)
        await _in_thread(lambda: self._save(listed))

    def _save(self, instances: list[StoredInstance]) -> None:
        for instance in instances:
            instance_id = instance.order.instance_ids[0]
            write_private(self._directory / f"{instance_id}.json", json.dumps(instance.to_dict()))

    async def forget(self, instance_id: str) -> None:
        await _in_thread(lambda: (self._directory / f"{instance_id}.json").unlink(missing_ok=True))

    async def save_ended(self, ended: dict[str, float]) -> None:
        text = json.dumps(ended)
        await _in_thread(lambda: write_private(self._directory / ENDED_FILE, text))


async def _in_thread(work: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise StoreError(f"cannot use the agent's folder: {error}") from error


class PersistedState:
    """What the store holds, so that nothing is written twice or left out.

    `ended` are ids that were ended before they came, each with the Unix time it is kept until.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._saved: dict[str, StoredInstance] = {}
        self.ended: dict[str, float] = {}

    async def load(self, cluster: str) -> list[ManagedInstance]:
        """Return the instances of a cluster that an earlier run stored. Raises `StoreError`."""
        found, self.ended = await self._store.load()
        mine = [each for each in found if each.order.cluster_id == cluster]
        self._saved = {each.id: StoredInstance.of(each) for each in mine}
        return mine

    async def save(self, listed: Iterable[ManagedInstance]) -> None:
        """Store what has changed of these instances. Raises `StoreError`."""
        stored = {each.id: StoredInstance.of(each) for each in listed}
        fresh = {key: each for key, each in stored.items() if self._saved.get(key) != each}
        if fresh:
            await self._store.save(fresh.values())
            self._saved |= fresh

    async def save_ended(self, instance_ids: Iterable[str], *, until: float, wall: float) -> None:
        """Add ids that were ended before they came, and drop expired ones. Raises `StoreError`."""
        ended = {key: end for key, end in self.ended.items() if end > wall}
        ended |= dict.fromkeys(instance_ids, until)
        await self._store.save_ended(ended)
        self.ended = ended

    async def forget(self, instance_id: str) -> None:
        """Remove an instance. Raises `StoreError`."""
        await self._store.forget(instance_id)
        self._saved.pop(instance_id, None)
