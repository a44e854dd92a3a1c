"""Metering events: a JSON line for each invocation, and a heartbeat for each instance.

The format is that of NVIDIA's worker (https://github.com/NVIDIA/nvcf, src/libraries/go/worker/metering), plus
`duration_seconds`, `instance_id` and `attempt` in the properties of an invocation. Lines are written by a
thread of their own; when it cannot keep up they are dropped and counted, as other telemetry is.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from nvcf_otel import names
from nvcf_otel.delivery import Delivery, Drops, Reports
from nvcf_otel.settings import QueueSettings
from nvcf_proto import environment as env
from nvcf_worker.control.config import WorkerConfig
from nvcf_worker.message import Work

METERING = "NVCF_METERING"
"""[ext] Target of metering events: `stdout`, `stderr` or the path of a file. Default: off."""
HEARTBEAT = "NVCF_METERING_HEARTBEAT_SECONDS"
"""[ext] Seconds between two metering events of the instance. Default: 30."""
DEFAULT_HEARTBEAT = 30.0
NSPECT_ID = "NVCF_NSPECT_ID"
"""[ext] Value of `nspect_id` in metering events. Default: empty."""
BILLING_PREFIX = "x-billing-"
QUEUE = QueueSettings(size=16_384, batch=512, delay=0.5)

INITIALIZING = "initializing"
READY = "ready"


class Instance(NamedTuple):
    """What all events of an instance say."""

    environment: str
    nca_id: str
    nspect_id: str
    instance_id: str
    instance_type: str
    backend: str
    function_id: str
    version_id: str
    gpus: int
    gpu_type: str
    region: str
    tags: tuple[str, ...]

    @classmethod
    def of(cls, config: WorkerConfig, environ: Mapping[str, str]) -> Instance:
        """From the worker's settings and environment."""
        gpus = environ.get(env.ATTACHED_GPU_COUNT, "")
        return cls(
            environment=config.environment,
            nca_id=config.nca_id,
            nspect_id=environ.get(NSPECT_ID, ""),
            instance_id=config.instance_id,
            instance_type=config.instance_type,
            backend=config.backend,
            function_id=config.function_id,
            version_id=config.version_id,
            gpus=int(gpus) if gpus.isascii() and gpus.isdigit() else 0,
            gpu_type=environ.get(env.GPU_NAME, ""),
            region=config.zone,
            tags=tags_of(environ.get(env.FUNCTION_TAGS, "")),
        )


def tags_of(text: str) -> tuple[str, ...]:
    """FUNCTION_TAGS: a JSON list or a comma list."""
    try:
        found = json.loads(text)
    except ValueError:
        found = text.split(",")
    return tuple(str(each).strip() for each in found if str(each).strip()) if isinstance(found, list) else ()


class Invocation(NamedTuple):
    """One invocation. `at` is Unix time; `seconds` were spent in the handler."""

    at: float
    request_id: str
    subject: str
    nca_id: str
    seconds: float
    size: int
    outcome: str
    attempt: int
    billing: Mapping[str, str]


class Heartbeat(NamedTuple):
    """The instance is there; `seconds` since the heartbeat before."""

    at: float
    status: str
    seconds: float


def invocation_event(instance: Instance, event: Invocation) -> dict[str, Any]:
    """The event of an invocation."""
    properties = {
        "request_id": event.request_id,
        "sub": event.subject,
        "instance_type": instance.instance_type,
        "backend": instance.backend,
        "function_id": instance.function_id,
        "function_version_id": instance.version_id,
        "size": event.size,
        "duration": math.ceil(event.seconds),
        "response_type": "FULFILLED" if event.outcome == names.FULFILLED else "ERRORED",
        "gpus": instance.gpus,
        "gpu_type": instance.gpu_type,
        "owner_nca_id": instance.nca_id,
        **({"region": instance.region} if instance.region else {}),
        **({"user_function_tags": list(instance.tags)} if instance.tags else {}),
        **({"billing_headers": dict(event.billing)} if event.billing else {}),
        "duration_seconds": round(event.seconds, 6),
        "instance_id": instance.instance_id,
        "attempt": event.attempt,
    }
    return _event(instance, event.at, "metering event", "NVCF_Invocation", event.nca_id, properties)


def heartbeat_event(instance: Instance, event: Heartbeat) -> dict[str, Any]:
    """The event of a heartbeat."""
    properties = {
        "instance_type": instance.instance_type,
        "instance_id": instance.instance_id,
        "backend": instance.backend,
        "function_id": instance.function_id,
        "function_version_id": instance.version_id,
        "duration": round(event.seconds, 6),
        "status": event.status,
        "gpus": instance.gpus,
        "gpu_type": instance.gpu_type,
        "owner_nca_id": instance.nca_id,
        **({"user_function_tags": list(instance.tags)} if instance.tags else {}),
    }
    message, kind = "infrastructure metering event", "NVCF_Infrastructure"
    return _event(instance, event.at, message, kind, instance.nca_id, properties)


def _event(
    instance: Instance, at: float, message: str, kind: str, nca_id: str, properties: dict[str, Any]
) -> dict[str, Any]:
    return {
        "level": "info",
        "msg": message,
        "env": instance.environment,
        "data": {
            "timestamp": datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z"),
            "transaction_id": str(uuid.uuid4()),
            "nca_id": nca_id,
            "nspect_id": instance.nspect_id,
            "event_type": kind,
            "properties": properties,
        },
    }


class Metering:
    """Events of one instance. `invocation` and `heartbeat` are called on the event loop."""

    def __init__(
        self,
        instance: Instance,
        target: str,
        interval: float = DEFAULT_HEARTBEAT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._instance = instance
        self._interval = interval
        self._clock = clock
        self._beat_at = clock()
        self._status = INITIALIZING
        self.drops = Drops()
        self._delivery: Delivery[Invocation | Heartbeat] = Delivery(
            "metering",
            lambda: _Lines(instance, target),
            QUEUE,
            self.drops,
            Reports("metering events", target),
        )
        self.heartbeat()

    def invocation(self, work: Work, outcome: str, seconds: float, size: int) -> None:
        """A request is over; `outcome` as in nvcf_otel.names, `size` the bytes of its answer."""
        message = work.message
        billing = {
            pair.key.lower(): pair.value
            for pair in message.requestHeaders
            if pair.key[:10].lower() == BILLING_PREFIX
        }
        self._delivery.put(
            Invocation(
                self._clock(),
                work.request_id,
                message.subject,
                message.ncaId,
                seconds,
                size,
                outcome,
                work.attempt,
                billing,
            )
        )

    def heartbeat(self) -> None:
        """The instance is there."""
        now = self._clock()
        self._delivery.put(Heartbeat(now, self._status, max(0.0, now - self._beat_at)))
        self._beat_at = now

    def ready(self) -> None:
        """Requests are taken from now on."""
        if self._status != READY:
            self.heartbeat()
            self._status = READY

    async def beat(self) -> None:
        """Tell each `interval` seconds that the instance is there, until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            self.heartbeat()

    def close(self, seconds: float) -> None:
        """The last heartbeat, and write what is queued. Blocks."""
        self.heartbeat()
        self._delivery.close(seconds)


class _Written(NamedTuple):
    name: str = "SUCCESS"


class _Lines:
    """Where events are written. Used by the thread of the queue."""

    def __init__(self, instance: Instance, target: str) -> None:
        self._instance = instance
        self._own = target not in ("stdout", "stderr")
        self._stream: TextIO
        if self._own:
            self._stream = Path(target).open("a", encoding="utf-8")  # noqa: SIM115 - closed in shutdown
        else:
            self._stream = sys.stdout if target == "stdout" else sys.stderr

    def export(self, batch: Sequence[Invocation | Heartbeat], /) -> _Written:
        """Write a line for each."""
        lines = [json.dumps(self._event(each), ensure_ascii=False) for each in batch]
        # One write, so that lines of the function do not come in between.
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()
        return _Written()

    def _event(self, event: Invocation | Heartbeat) -> dict[str, Any]:
        if isinstance(event, Invocation):
            return invocation_event(self._instance, event)
        return heartbeat_event(self._instance, event)

    def shutdown(self) -> None:
        """Close a file."""
        if self._own:
            self._stream.close()


def metering_from(config: WorkerConfig, environ: Mapping[str, str]) -> Metering | None:
    """What NVCF_METERING asks for."""
    target = environ.get(METERING, "").strip()
    if not target or target.lower() in ("off", "none", "0", "false"):
        return None
    text = environ.get(HEARTBEAT, "").strip()
    try:
        interval = max(1.0, float(text)) if text else DEFAULT_HEARTBEAT
    except ValueError:
        interval = DEFAULT_HEARTBEAT
    return Metering(Instance.of(config, environ), target, interval)
