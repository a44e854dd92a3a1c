"""The agent's persisted state as objects of its cluster: an ICMSRequest with a Secret for each request.

Every write may be repeated, so a call whose outcome is unknown is just made again: objects are applied, and a
status is written to the version of the object that was seen last. Only the leader writes.
"""

import asyncio
import base64
import gzip
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field

import msgspec

from nvcf_agent.errors import StoreError
from nvcf_agent.kubernetes import request_objects as objects
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.informer import Informer
from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP, ICMS_REQUEST, SECRET
from nvcf_agent.kubernetes.crds.icms_request import FINALIZER
from nvcf_agent.kubernetes.names import MANAGED_BY, MANAGER
from nvcf_agent.state.persisted_state import EndedInstance, StoredInstance
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.messages import CreationMessage

_log = logging.getLogger(__name__)

ENDED = "nvca-ended-instances"
"""ConfigMap with the ended instances."""
_ENDED_KEY = "ended.json.gz"
# 10,000 ended instances are about 2 MB of JSON and 0.4 MB here; a ConfigMap has at most 1 MiB.
_AT_ONCE = 16
_TRIES = 5

Saved = Callable[[Object, StoredInstance | None, StoredInstance], None]


@dataclass
class _Request:
    order: CreationMessage
    object: Object
    """What the object is, and its metadata."""
    instances: dict[str, StoredInstance] = field(default_factory=dict)
    going: bool = False
    """It is being removed by this agent."""


@dataclass(eq=False)
class RequestStore:
    """Stores the state in the namespace of requests.

    `on_deleted` is called with a request's id when somebody has asked to delete its ICMSRequest, and again
    until its instances have been forgotten: they are to end, and the object stays until then.
    `on_saved(request, before, after)` is called for each instance that was stored.
    """

    api: Api
    namespace: str
    _: KW_ONLY
    on_deleted: Callable[[str], None] = lambda _request_id: None
    on_saved: Saved = lambda _request, _before, _after: None
    wall: Callable[[], float] = time.time
    _requests: dict[str, _Request] = field(default_factory=dict)
    _writing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _pending: dict[str, dict[str, StoredInstance]] = field(default_factory=dict)

    async def run(self) -> None:
        """Watch for deleted requests, until cancelled."""
        informer = Informer(
            self.api,
            ICMS_REQUEST,
            namespace=self.namespace,
            labels=objects.SELECTOR,
            on_change=self._on_change,
            trim=_trim,
        )
        await informer.run()

    def object_of(self, request_id: str) -> Object | None:
        """Return the ICMSRequest of a request, as owner of what belongs to it."""
        known = self._requests.get(request_id)
        return known.object if known is not None else None

    async def load(self) -> tuple[list[StoredInstance], dict[str, EndedInstance]]:
        async with self._errors():
            listed = await self.api.list(ICMS_REQUEST, self.namespace, labels=objects.SELECTOR)
            secrets = await self.api.list(SECRET, self.namespace, labels=objects.SECRET_SELECTOR)
            by_name = {each["metadata"]["name"]: each for each in secrets.items}
            for request in listed.items:
                await self._load_request(request, by_name)
            ended = await self._load_ended()
        return [each for known in self._requests.values() for each in known.instances.values()], ended

    async def _load_request(self, request: Object, secrets: Mapping[str, Object]) -> None:
        name = request["metadata"]["name"]
        if not objects.is_complete(request, secrets):
            _log.warning("request %s was not stored to its end: it is removed, and comes again", name)
            await self._remove(request)
            return
        request_id = request["spec"]["requestId"]
        try:
            found = objects.stored_instances(request, secrets[objects.secret_name(request_id)])
        except InvalidRecord as error:
            _log.error("cannot read request %s, which is left alone: %s", name, error)
            return
        instances = {each.restored().id: each for each in found}
        self._requests[request_id] = _Request(found[0].order, _reference(request), instances)

    async def _load_ended(self) -> dict[str, EndedInstance]:
        found = await self.api.get(CONFIG_MAP, ENDED, self.namespace)
        packed = ((found or {}).get("binaryData") or {}).get(_ENDED_KEY)
        if packed is None:
            return {}
        try:
            members = msgspec.json.decode(gzip.decompress(base64.b64decode(packed)), type=Object)
            return {key: EndedInstance.from_dict(each) for key, each in members.items()}
        except (InvalidRecord, msgspec.MsgspecError, OSError, EOFError, ValueError) as error:
            _log.error("cannot read ConfigMap %s: %s", ENDED, error)
            return {}

    async def save(self, instances: Mapping[str, StoredInstance]) -> None:
        by_request: dict[str, dict[str, StoredInstance]] = {}
        for instance_id, each in instances.items():
            by_request.setdefault(each.order.request_id, {})[instance_id] = each
        results = await asyncio.gather(
            *(self._save_request(*each) for each in by_request.items()), return_exceptions=True
        )
        for failure in results:
            if failure is not None:
                raise failure

    async def _save_request(self, request_id: str, changed: dict[str, StoredInstance]) -> None:
        self._pending.setdefault(request_id, {}).update(changed)
        async with self._errors(), self._only_writer(request_id):
            newest = self._pending.pop(request_id, None)
            if newest is None:
                # While this call waited for its turn, another one has written it.
                return
            try:
                known = self._requests.get(request_id)
                before = known.instances if known is not None else {}
                order = next(reversed(newest.values())).order
                if known is None or known.order != order:
                    known = await self._write_order(order)
                await self._write_status(known, before | newest)
                self._requests[request_id] = known
            except BaseException:
                self._pending[request_id] = newest | self._pending.get(request_id, {})
                raise
        for instance_id, each in newest.items():
            self.on_saved(known.object, before.get(instance_id), each)

    async def forget(self, instance_id: str) -> None:
        known = next((each for each in self._requests.values() if instance_id in each.instances), None)
        if known is None:
            return
        request_id = known.order.request_id
        async with self._errors(), self._only_writer(request_id):
            others = {key: each for key, each in known.instances.items() if key != instance_id}
            if others:
                await self._write_status(known, others)
                return
            known.going = True
            await self._remove(known.object)
            del self._requests[request_id]
            self._pending.pop(request_id, None)
        self._locks.pop(request_id, None)

    async def save_ended(self, ended: Mapping[str, EndedInstance]) -> None:
        members = msgspec.json.encode({key: each.to_dict() for key, each in ended.items()})
        packed = base64.b64encode(gzip.compress(members, mtime=0)).decode()
        labels, data = {MANAGED_BY: MANAGER}, {_ENDED_KEY: packed}
        async with self._errors():
            await self.api.apply(CONFIG_MAP, CONFIG_MAP.new(ENDED, self.namespace, labels, binaryData=data))

    # one request's objects

    async def _write_order(self, order: CreationMessage) -> _Request:
        request = await self.api.apply(ICMS_REQUEST, objects.request_object(order, self.namespace))
        await self.api.apply(SECRET, objects.message_secret(order, request))
        return _Request(order, _reference(request))

    async def _write_status(self, known: _Request, instances: dict[str, StoredInstance]) -> None:
        """Write to the version of the object that was seen last; if it has changed, look, and do it again."""
        status = objects.request_state(instances, self.wall())
        for _ in range(_TRIES):
            metadata = known.object["metadata"]
            body = {
                "metadata": {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")},
                "status": status,
            }
            try:
                known.object = _reference(await self.api.apply(ICMS_REQUEST, body, part="status"))
                known.instances = instances
                return
            except ApiError as error:
                if not (error.is_conflict or error.is_missing):
                    raise
            found = await self.api.get(ICMS_REQUEST, metadata["name"], self.namespace)
            if found is None or found["metadata"]["uid"] != metadata["uid"]:
                _log.warning("request %s was removed by force, and is stored again", metadata["name"])
                found = (await self._write_order(known.order)).object
            known.object = _reference(found)
        raise StoreError(f"request {known.order.request_id} is changed by others all the time")

    async def _remove(self, request: Object | None) -> None:
        """Let a request go, and delete it. Its Secret and all else that it owns go with it."""
        for _ in range(_TRIES):
            if request is None:
                return
            metadata = request["metadata"]
            name, uid = metadata["name"], metadata["uid"]
            finalizers = metadata.get("finalizers") or []
            try:
                if FINALIZER in finalizers:
                    left = [each for each in finalizers if each != FINALIZER]
                    seen = {"resourceVersion": metadata["resourceVersion"], "uid": uid}
                    await self.api.patch(
                        ICMS_REQUEST, name, self.namespace, {"metadata": seen | {"finalizers": left}}
                    )
                await self.api.delete(ICMS_REQUEST, name, self.namespace, uid=uid)
                return
            except ApiError as error:
                if not (error.is_conflict or error.is_missing):
                    raise
            found = await self.api.get(ICMS_REQUEST, name, self.namespace)
            request = found if found is not None and found["metadata"]["uid"] == uid else None
        raise StoreError("an ICMSRequest is changed by others all the time")

    @asynccontextmanager
    async def _only_writer(self, request_id: str) -> AsyncGenerator[None]:
        """Wait until nobody else writes this request, and not too many others are written."""
        async with self._locks.setdefault(request_id, asyncio.Lock()), self._writing:
            yield

    @asynccontextmanager
    async def _errors(self) -> AsyncGenerator[None]:
        """Raise `StoreError` for what the API server refuses or does not answer."""
        try:
            yield
        except ApiError as error:
            raise StoreError(f"cannot store requests: {error}") from error

    def _on_change(self, old: Object | None, new: Object | None) -> None:
        seen = new or old
        if seen is None or (new is not None and "deletionTimestamp" not in new["metadata"]):
            return
        request_id = seen["spec"]["requestId"]
        known = self._requests.get(request_id)
        if known is None or known.going or known.object["metadata"]["uid"] != seen["metadata"]["uid"]:
            return
        if old is None or new is None or "deletionTimestamp" not in old["metadata"]:
            _log.warning("ICMSRequest %s was deleted: its instances end", seen["metadata"]["name"])
        self.on_deleted(request_id)


def _reference(request: Object) -> Object:
    metadata = {name: value for name, value in request["metadata"].items() if name != "managedFields"}
    return {"apiVersion": request["apiVersion"], "kind": request["kind"], "metadata": metadata}


def _trim(request: Object) -> None:
    request["spec"] = {"requestId": request["spec"]["requestId"]}
    request.pop("status", None)
