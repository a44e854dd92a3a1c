"""Which version a request belongs to, remembered once a 202 was answered (section 2, request tracking)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_broker.connection import describe_error
from nvcf_broker.requests import BrokerRequests
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import QueueError
from nvcf_gateway.queue.placement import placement_tag
from nvcf_otel.spans import TRACEPARENT
from nvcf_proto import streams, subjects
from nvcf_proto.pb import nvcf_pb2

_log = logging.getLogger(__name__)

API_TIMEOUT = 5.0
STAYS = "Nvcf-Answer-Stays"
"""[ext] Header of the record of a request that has an idempotency key."""

_STREAM_NAME_IN_USE = 10058


@dataclass(frozen=True)
class Tracked:
    """Where a request lives. `requested_at` is Unix time in nanoseconds."""

    request_id: str
    region: str
    function_id: str
    version_id: str
    requested_at: int
    stays: bool = False
    """Whether its answer stays after it has been handed out, for calls that are repeated with its key."""
    trace: str | None = None
    """Traceparent of the call that queued it, where that is recorded."""


class Tracking:
    """The tracking streams of all regions; writes go to the gateway's own."""

    def __init__(self, client: Client, requests: BrokerRequests, config: GatewayConfig) -> None:
        self._client = client
        self._requests = requests
        self._config = config

    async def ensure(self) -> None:
        """Create the streams eagerly: a direct get on a missing one only times out. Raises QueueError."""
        for region in self._config.regions:
            config = streams.tracking_stream_config(
                region,
                replicas=self._config.replicas,
                placement_tag=placement_tag(self._client, self._config, region),
            )
            answer = await self._call(f"{subjects.API_PREFIX}.STREAM.CREATE.{config['name']}", _json(config))
            error = json.loads(answer.data).get("error")
            if error is not None and error.get("err_code") != _STREAM_NAME_IN_USE:
                raise QueueError(f"cannot create stream {config['name']}: {error.get('description')}")

    async def record(self, tracked: Tracked) -> None:
        """Remember a request; a record that is there already is renewed. Raises QueueError."""
        message = nvcf_pb2.WorkerResultTracking(
            functionId=tracked.function_id, functionVersionId=tracked.version_id
        )
        message.requestTime.FromNanoseconds(tracked.requested_at)
        subject = subjects.tracking_subject(tracked.region, tracked.request_id)
        headers = {STAYS: "1"} if tracked.stays else {}
        if tracked.trace is not None:
            headers[TRACEPARENT] = tracked.trace
        answer = await self._call(subject, message.SerializeToString(), headers or None)
        error = json.loads(answer.data).get("error")
        if error is not None:
            raise QueueError(f"cannot track the request: {error.get('description')}")

    async def find(self, request_id: str) -> Tracked | None:
        """The request's record: own region first, then the others. Raises QueueError."""
        own = self._config.region
        for region in (own, *(each for each in self._config.regions if each != own)):
            subject = subjects.tracking_subject(region, request_id)
            name = f"{subjects.API_PREFIX}.DIRECT.GET.{subjects.tracking_stream(region)}"
            answer = await self._call(name, _json({"last_by_subj": subject}))
            headers = answer.headers or {}
            if not headers.get("Status"):
                return _tracked(request_id, region, answer.data, headers)
        return None

    async def forget(self, tracked: Tracked) -> None:
        """Remove the record. Raises QueueError."""
        stream = subjects.tracking_stream(tracked.region)
        subject = subjects.tracking_subject(tracked.region, tracked.request_id)
        await self._call(f"{subjects.API_PREFIX}.STREAM.PURGE.{stream}", _json({"filter": subject}))

    async def _call(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> Msg:
        try:
            return await self._requests.request(subject, payload, timeout=API_TIMEOUT, headers=headers)
        except (nats.errors.Error, TimeoutError) as error:
            raise QueueError(f"the broker did not answer: {describe_error(error)}") from error


def _tracked(request_id: str, region: str, data: bytes, headers: Mapping[str, str]) -> Tracked:
    message = nvcf_pb2.WorkerResultTracking.FromString(data)
    return Tracked(
        request_id,
        region,
        message.functionId,
        message.functionVersionId,
        message.requestTime.ToNanoseconds(),
        STAYS in headers,
        headers.get(TRACEPARENT),
    )


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()
