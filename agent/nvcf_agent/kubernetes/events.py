"""Events of Kubernetes, for `kubectl describe`: what happens to instances, at their ICMSRequest.

They are for people: some get lost when there are too many, or when the API server is away.
"""

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import EVENT
from nvcf_agent.kubernetes.request_objects import instance_state, timestamp
from nvcf_agent.state.managed_instance import Phase
from nvcf_agent.state.persisted_state import StoredInstance

_log = logging.getLogger(__name__)

COMPONENT = "nvca"
"""Name of NVIDIA's agent as a source of events."""
CREATION = "InstanceCreation"
STATUS_UPDATE = "InstanceStatusUpdate"
TERMINATION = "InstanceTermination"

MOST_WAITING = 500
PER_SECOND = 10.0
_REMEMBERED = 1000
_LONGEST_MESSAGE = 1024


@dataclass(frozen=True)
class _Said:
    about: Object
    reason: str
    message: str
    warning: bool

    @property
    def key(self) -> tuple[str, str, str]:
        return self.about["metadata"]["uid"], self.reason, self.message


@dataclass(eq=False)
class EventRecorder:
    """Writes events, at most `PER_SECOND` and one after the other. A repeated one is counted up.

    `instance` names this process.
    """

    api: Api
    instance: str
    wall: Callable[[], float] = time.time
    dropped: int = 0
    """Events that were not written because too many waited."""
    _waiting: asyncio.Queue[_Said] = field(default_factory=lambda: asyncio.Queue(MOST_WAITING))
    _written: OrderedDict[tuple[str, str, str], tuple[str, int]] = field(default_factory=OrderedDict)

    def record(self, about: Object, reason: str, message: str, *, warning: bool = False) -> None:
        """Write an event about an object as the API server has it, soon. Never waits."""
        try:
            self._waiting.put_nowait(_Said(about, reason, message[:_LONGEST_MESSAGE], warning))
        except asyncio.QueueFull:
            self.dropped += 1

    def record_saved(self, request: Object, before: StoredInstance | None, after: StoredInstance) -> None:
        """Write what has become of an instance of a request, if that says something new."""
        if (news := instance_news(before, after)) is not None:
            reason, message, warning = news
            self.record(request, reason, message, warning=warning)

    async def run(self) -> None:
        """Write what is recorded, until cancelled."""
        while True:
            said = await self._waiting.get()
            try:
                await self._write(said)
            except ApiError as error:
                _log.info("an event is lost: %s", error)
            await asyncio.sleep(1 / PER_SECOND)

    async def _write(self, said: _Said) -> None:
        now = timestamp(self.wall())
        namespace = said.about["metadata"].get("namespace") or "default"
        name, count = self._written.pop(said.key, ("", 0))
        if count:
            try:
                again = {"count": count + 1, "lastTimestamp": now}
                await self.api.patch(EVENT, name, namespace, again)
            except ApiError as error:
                if not error.is_missing:
                    raise
                # It has expired.
                count = 0
        if not count:
            name = f"{said.about['metadata']['name']}.{uuid.uuid4().hex[:16]}"
            await self.api.create(EVENT, self._event(said, name, namespace, now))
        self._written[said.key] = name, count + 1
        while len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)

    def _event(self, said: _Said, name: str, namespace: str, now: str) -> Object:
        metadata = said.about["metadata"]
        about = {key: metadata[key] for key in ("name", "namespace", "uid") if key in metadata}
        about |= {key: said.about[key] for key in ("apiVersion", "kind")}
        return {
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about,
            "reason": said.reason,
            "message": said.message,
            "type": "Warning" if said.warning else "Normal",
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self.instance,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def instance_news(before: StoredInstance | None, after: StoredInstance) -> tuple[str, str, bool] | None:
    """Return the reason, the text, and whether it is a warning; None if nothing that people see changed."""
    instance = after.restored()
    state, failed = instance_state(instance), instance.phase is Phase.FAILED
    why = f": {instance.reason}" if instance.reason else ""
    if before is None:
        if failed:
            return CREATION, f"instance {instance.id} is refused{why}", True
        return CREATION, f"instance {instance.id} of {instance.function_name} is ordered", False
    if instance_state(before.restored()) is state:
        return None
    if instance.phase is Phase.TERMINATING:
        return TERMINATION, f"instance {instance.id} ends{why}", False
    if instance.is_final:
        return TERMINATION, f"instance {instance.id} is {'failed' if failed else 'gone'}{why}", failed
    return STATUS_UPDATE, f"instance {instance.id} is {state.value}{why}", False
