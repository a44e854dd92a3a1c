"""What the running agent has already written down, so that nothing is written twice or left out."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nvcf_agent.errors import StoreError
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import Category, Phase, Request
from nvcf_broker.files import private_directory, write_private
from nvcf_proto.compute import CreationMessage
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.record import Count, Record, Text, decode_object

_log = logging.getLogger(__name__)

T = TypeVar("T")

ENDED_FILE = "ended"


class _StoredRequest(Record, frozen=True, kw_only=True):
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


_SAME = [name for name in _StoredRequest.__struct_fields__ if name not in ("slots", "devices")]


def to_dict(request: Request) -> dict[str, Any]:
    """Return what is remembered of a request; the inverse of `from_dict`."""
    stored = _StoredRequest(
        slots=request.share.slots,
        devices=tuple(str(device) for device in request.share.devices),
        **{name: getattr(request, name) for name in _SAME},
    )
    return stored.to_dict()


def from_dict(members: Any) -> Request:
    """Read a remembered request. Raises `InvalidRecord`."""
    stored = _StoredRequest.from_dict(members)
    if len(stored.order.instance_ids) != 1:
        raise InvalidRecord("order", "expected one instance")
    if not all(device.isdigit() for device in stored.devices):
        raise InvalidRecord("devices", "expected numbers")
    share = Share(stored.slots, tuple(int(each) for each in stored.devices))
    return Request(share=share, **{name: getattr(stored, name) for name in _SAME})


class Store(Protocol):
    """Where requests are remembered: files here, custom resources in a Kubernetes cluster."""

    async def load(self) -> tuple[list[Request], dict[str, float]]:
        """All requests, and the ids ended before they came with the Unix time until which that counts."""
        ...

    async def save(self, requests: Iterable[Request]) -> None:
        """Remember these as they are now; durable when it returns. Raises `StoreError`."""
        ...

    async def forget(self, instance_id: str) -> None:
        """Drop one."""
        ...

    async def save_ended(self, ended: dict[str, float]) -> None:
        """Remember ids that were ended before they came. Raises `StoreError`."""
        ...


class FileStore:
    """Requests as files of one folder. What cannot be read is set aside and told, never guessed at."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def load(self) -> tuple[list[Request], dict[str, float]]:
        return await _in_thread(self._load)

    def _load(self) -> tuple[list[Request], dict[str, float]]:
        private_directory(self._directory)
        requests = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                requests.append(from_dict(decode_object(path.read_bytes(), path.name)))
            except (InvalidRecord, ValueError) as error:
                _log.error("cannot read the request in %s, it is set aside: %s", path, error)
                path.replace(path.with_suffix(".unreadable"))
        return requests, self._load_ended()

    def _load_ended(self) -> dict[str, float]:
        try:
            document = json.loads((self._directory / ENDED_FILE).read_bytes())
            return {str(key): float(value) for key, value in document.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            _log.error("cannot read %s: %s", self._directory / ENDED_FILE, error)
            return {}

    async def save(self, requests: Iterable[Request]) -> None:
        listed = list(requests)
        await _in_thread(lambda: self._save(listed))

    def _save(self, requests: list[Request]) -> None:
        for request in requests:
            write_private(self._directory / f"{request.id}.json", json.dumps(to_dict(request)))

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


def remembered(request: Request) -> Request:
    """Only what is remembered of a request; two that look alike need not be saved again."""
    return replace(
        request,
        has_process=False,
        pid=None,
        health_port=None,
        failures=0,
        postponements=0,
        launched_at=0.0,
        waiting_since=0.0,
        retry_at=0.0,
        verdict=None,
        cleaned=False,
    )


class Memory:
    """Requests as the store has them, and the ids that were ended before they came (until a Unix time)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._saved: dict[str, Request] = {}
        self.ended: dict[str, float] = {}

    async def load(self, cluster: str) -> list[Request]:
        """The requests of a cluster that an earlier run remembered. Raises `StoreError`."""
        found, self.ended = await self._store.load()
        mine = [each for each in found if each.order.cluster_id == cluster]
        self._saved = {each.id: remembered(each) for each in mine}
        return mine

    async def save(self, listed: Iterable[Request]) -> None:
        """Write down what has changed of these. Raises `StoreError`."""
        kept = {each.id: remembered(each) for each in listed}
        fresh = {key: each for key, each in kept.items() if self._saved.get(key) != each}
        if fresh:
            await self._store.save(fresh.values())
            self._saved |= fresh

    async def save_ended(self, instance_ids: Iterable[str], *, until: float, wall: float) -> None:
        """Remember ids that were ended before they came, and drop what is over. Raises `StoreError`."""
        ended = {key: end for key, end in self.ended.items() if end > wall}
        ended |= dict.fromkeys(instance_ids, until)
        await self._store.save_ended(ended)
        self.ended = ended

    async def forget(self, instance_id: str) -> None:
        """Drop a request. Raises `StoreError`."""
        await self._store.forget(instance_id)
        self._saved.pop(instance_id, None)
