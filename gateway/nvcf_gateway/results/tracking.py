"""Which version a request belongs to, remembered once a 202 was answered (protocol.md, section 2.7)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from nats.aio.client import Client

from nvcf_broker.jetstream import JetStream, Requester
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.queue.regional_buckets import placement_tag
from nvcf_otel.spans import TRACEPARENT
from nvcf_proto import streams, subjects
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.stores import TRACKING

_log = logging.getLogger(__name__)

STAYS = "Nvcf-Answer-Stays"
"""[ext] Header of the record of a request that has an idempotency key."""


@dataclass(frozen=True)
class Tracked:
    """The place of a request. `requested_at` is Unix time in nanoseconds."""

    request_id: str
    region: str
    function_id: str
    version_id: str
    requested_at: int
    retained: bool = False
    """Whether its response remains after a poll fetched it, for calls that are repeated with its key."""
    trace: str | None = None
    """Traceparent of the call that queued it, if that is recorded."""


class Tracking:
    """The tracking streams of all regions; writes go to the gateway's own."""

    def __init__(self, client: Client, requests: Requester, config: GatewayConfig) -> None:
        self._client = client
        self._jetstream = JetStream(requests)
        self._config = config

    async def ensure(self) -> None:
        """Create the streams eagerly: a direct get on a missing one only times out. Raises BrokerError."""
        for region in self._config.regions:
            config = streams.tracking_stream_config(
                region,
                replicas=self._config.replicas,
                bounds=TRACKING.bounds(self._config.data_max, parts=len(self._config.regions)),
                placement_tag=placement_tag(self._client, self._config, region),
            )
            await self._jetstream.ensure_stream(config)

    async def record(self, tracked: Tracked) -> None:
        """Write the record of a request, or renew it. Raises BrokerError."""
        message = nvcf_pb2.WorkerResultTracking(
            functionId=tracked.function_id, functionVersionId=tracked.version_id
        )
        message.requestTime.FromNanoseconds(tracked.requested_at)
        subject = subjects.tracking_subject(tracked.region, tracked.request_id)
        headers = {STAYS: "1"} if tracked.retained else {}
        if tracked.trace is not None:
            headers[TRACEPARENT] = tracked.trace
        await self._jetstream.publish(subject, message.SerializeToString(), headers or None)

    async def find(self, request_id: str) -> Tracked | None:
        """Return a request's record, from the own region first. Raises BrokerError."""
        for region in self._config.own_region_first:
            subject = subjects.tracking_subject(region, request_id)
            stored = await self._jetstream.direct_get(subjects.tracking_stream(region), last_by_subj=subject)
            if stored is not None:
                return _tracked(request_id, region, stored.data, stored.headers or {})
        return None

    async def forget(self, tracked: Tracked) -> None:
        """Remove the record. Raises BrokerError."""
        stream = subjects.tracking_stream(tracked.region)
        subject = subjects.tracking_subject(tracked.region, tracked.request_id)
        await self._jetstream.purge(stream, subject)


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
