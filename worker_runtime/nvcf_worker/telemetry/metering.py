"""Metering events: a JSON line for each invocation, and a heartbeat for each instance.

The format is that of NVIDIA's worker (https://github.com/NVIDIA/nvcf, src/libraries/go/worker/metering), plus
`duration_seconds`, `instance_id` and `attempt` in the properties of an invocation. A thread of its own writes
the lines. If it cannot keep up, events are dropped and counted, as other telemetry is.
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
    """The values that all events of an instance share. `common` are properties of both kinds of events."""

    environment: str
    nca_id: str
    nspect_id: str
    region: str
    common: Mapping[str, Any]

    @classmethod
    def of(cls, config: WorkerConfig, environ: Mapping[str, str]) -> Instance:
        """Return the instance that the worker's settings and environment describe."""
        gpus = environ.get(env.ATTACHED_GPU_COUNT, "")
        tags = tags_of(environ.get(env.FUNCTION_TAGS, ""))
        common = {
            "instance_type": config.instance_type,
            "instance_id": config.instance_id,
            "backend": config.backend,
            "function_id": config.function_id,
            "function_version_id": config.version_id,
            "gpus": int(gpus) if gpus.isascii() and gpus.isdigit() else 0,
            "gpu_type": environ.get(env.GPU_NAME, ""),
            "owner_nca_id": config.nca_id,
            **({"user_function_tags": tags} if tags else {}),
        }
        nspect_id = environ.get(NSPECT_ID, "")
        return cls(config.environment, config.nca_id, nspect_id, config.zone, common)

    def event(self, at: float, message: str, kind: str, nca_id: str, properties: object) -> dict[str, Any]:
        """Return an event of the instance. `at` is a Unix time in seconds."""
        return {
            "level": "info",
            "msg": message,
            "env": self.environment,
            "data": {
                "timestamp": datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z"),
                "transaction_id": str(uuid.uuid4()),
                "nca_id": nca_id,
                "nspect_id": self.nspect_id,
                "event_type": kind,
                "properties": properties,
            },
        }


def tags_of(text: str) -> list[str]:
    """Return the tags in FUNCTION_TAGS: a JSON list or a comma-separated list."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = text.split(",")
    return [str(each).strip() for each in found if str(each).strip()] if isinstance(found, list) else []


class Invocation(NamedTuple):
    """One invocation. `at` is a Unix time; `seconds` is the duration of the handler, `size` is in bytes."""

    at: float
    request_id: str
    subject: str
    nca_id: str
    seconds: float
    size: int
    outcome: str
    attempt: int
    billing: Mapping[str, str]

    def event(self, instance: Instance) -> dict[str, Any]:
        """Return the event of the invocation."""
        properties = {
            **instance.common,
            "request_id": self.request_id,
            "sub": self.subject,
            "size": self.size,
            "duration": math.ceil(self.seconds),
            "response_type": "FULFILLED" if self.outcome == names.FULFILLED else "ERRORED",
            **({"region": instance.region} if instance.region else {}),
            **({"billing_headers": dict(self.billing)} if self.billing else {}),
            "duration_seconds": round(self.seconds, 6),
            "attempt": self.attempt,
        }
        return instance.event(self.at, "metering event", "NVCF_Invocation", self.nca_id, properties)


class Heartbeat(NamedTuple):
    """A sign of life of the instance, `seconds` after the heartbeat before."""

    at: float
    status: str
    seconds: float

    def event(self, instance: Instance) -> dict[str, Any]:
        """Return the event of the heartbeat."""
        properties = {**instance.common, "duration": round(self.seconds, 6), "status": self.status}
        message, kind = "infrastructure metering event", "NVCF_Infrastructure"
        return instance.event(self.at, message, kind, instance.nca_id, properties)


class Metering:
    """The metering of one instance. `invocation` and `heartbeat` are called on the event loop."""

    def __init__(
        self,
        instance: Instance,
        target: str,
        interval: float = DEFAULT_HEARTBEAT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._interval = interval
        self._clock = clock
        self._beat_at = clock()
        self._status = INITIALIZING
        self.drops = Drops()
        reports = Reports("metering events", target)
        self._delivery: Delivery[Invocation | Heartbeat] = Delivery(
            "metering", lambda: _Lines(instance, target), QUEUE, self.drops, reports
        )
        self.heartbeat()

    def invocation(self, work: Work, outcome: str, seconds: float, size: int) -> None:
        """Report a request that has ended.

        outcome: a name of nvcf_otel.names. seconds: duration of the handler. size: bytes of the response.
        """
        message = work.message
        billing = {
            pair.key.lower(): pair.value
            for pair in message.requestHeaders
            if pair.key[:10].lower() == BILLING_PREFIX
        }
        who = work.request_id, message.subject, message.ncaId
        self._delivery.put(Invocation(self._clock(), *who, seconds, size, outcome, work.attempt, billing))

    def heartbeat(self) -> None:
        """Report that the instance is alive."""
        now = self._clock()
        self._delivery.put(Heartbeat(now, self._status, max(0.0, now - self._beat_at)))
        self._beat_at = now

    def ready(self) -> None:
        """Change the status to ready: requests are taken from now on."""
        if self._status != READY:
            self.heartbeat()
            self._status = READY

    async def beat(self) -> None:
        """Send a heartbeat every `interval` seconds until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            self.heartbeat()

    def close(self, seconds: float) -> None:
        """Send a last heartbeat and write what is queued, in at most `seconds`. Blocks."""
        self.heartbeat()
        self._delivery.close(seconds)


class _Written(NamedTuple):
    name: str = "SUCCESS"


class _Lines:
    """Writes the events. Used on the thread of the queue."""

    def __init__(self, instance: Instance, target: str) -> None:
        self._instance = instance
        self._own = target not in ("stdout", "stderr")
        self._stream: TextIO
        if self._own:
            self._stream = Path(target).open("a", encoding="utf-8")  # noqa: SIM115 - closed in shutdown
        else:
            self._stream = sys.stdout if target == "stdout" else sys.stderr

    def export(self, batch: Sequence[Invocation | Heartbeat], /) -> _Written:
        lines = [json.dumps(each.event(self._instance), ensure_ascii=False) for each in batch]
        # One write, so that output of the function does not come in between.
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()
        return _Written()

    def shutdown(self) -> None:
        if self._own:
            self._stream.close()


def metering_from(config: WorkerConfig, environ: Mapping[str, str]) -> Metering | None:
    """Return the metering that NVCF_METERING asks for; None if it is off."""
    target = environ.get(METERING, "").strip()
    if not target or target.lower() in ("off", "none", "0", "false"):
        return None
    text = environ.get(HEARTBEAT, "").strip()
    try:
        interval = max(1.0, float(text)) if text else DEFAULT_HEARTBEAT
    except ValueError:
        interval = DEFAULT_HEARTBEAT
    return Metering(Instance.of(config, environ), target, interval)
