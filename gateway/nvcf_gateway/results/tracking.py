"""Which version a request belongs to, remembered once a 202 was answered (protocol.md, section 2.7)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from nats.aio.client import Client

from nvcf_broker.errors import JetStreamError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.queue.regional_buckets import placement_tag
from nvcf_otel.spans import TRACEPARENT
from nvcf_proto import streams, subjects
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.stores import MORE_TRACKING, TRACKING

STAYS = "Nvcf-Answer-Stays"
"""[ext] Header of the record of a request that has an idempotency key."""
ACCOUNT = "Nvcf-Account"
"""[ext] Header of a record: the account that made the call, which alone may poll and cancel it."""


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
    nca_id: str = ""
    """Account that made the call; empty in records of other services."""
    trace: str | None = None
    """Traceparent of the call that queued it, if that is recorded."""
    overflow: bool = False
    """Whether the record is in the second stream of its region."""


class Tracking:
    """The tracking streams of all regions.

    Each region has two: the contract's, with one limit for all, and another one for what that refuses.
    """

    def __init__(self, client: Client, requests: Requester, config: GatewayConfig) -> None:
        self._client = client
        self._jetstream = JetStream(requests)
        self._config = config
        # No record is in a second stream after that, as far as this replica knows.
        self._overflow_until = 0.0

    async def ensure(self) -> None:
        """Create the streams eagerly: a direct get on a missing one only times out. Raises BrokerError."""
        for region in self._config.regions:
            for settings, store in (
                (streams.tracking_stream_config, TRACKING),
                (streams.more_tracking_stream_config, MORE_TRACKING),
            ):
                config = settings(
                    region,
                    replicas=self._config.replicas,
                    bounds=store.bounds(self._config.data_max, parts=len(self._config.regions)),
                    placement_tag=placement_tag(self._client, self._config, region),
                )
                await self._jetstream.ensure_stream(config)

    async def record(self, tracked: Tracked) -> None:
        """Write the record of a request, or renew it. Raises BrokerError."""
        message = nvcf_pb2.WorkerResultTracking(
            functionId=tracked.function_id, functionVersionId=tracked.version_id
        )
        message.requestTime.FromNanoseconds(tracked.requested_at)
        headers = {STAYS: "1"} if tracked.retained else {}
        if tracked.nca_id:
            headers[ACCOUNT] = tracked.nca_id
        if tracked.trace is not None:
            headers[TRACEPARENT] = tracked.trace
        for overflow in (False, True):
            _, subject = _place(tracked.region, tracked.request_id, overflow=overflow)
            try:
                await self._jetstream.publish(subject, message.SerializeToString(), headers or None)
                return
            except JetStreamError as error:
                if overflow or not _is_full(error):
                    raise
                self._overflow_until = time.monotonic() + streams.TRACKING_MAX_AGE_SECONDS

    async def find(self, request_id: str) -> Tracked | None:
        """Return a request's record, from the own region first. Raises BrokerError."""
        for region in self._config.own_region_first:
            for overflow in (False, True):
                stream, subject = _place(region, request_id, overflow=overflow)
                stored = await self._jetstream.direct_get(stream, last_by_subj=subject)
                if stored is not None:
                    found = _tracked(request_id, region, stored.data, stored.headers or {})
                    return replace(found, overflow=overflow)
        return None

    async def forget(self, region: str, request_id: str, *, overflow: bool | None = None) -> None:
        """Remove the record. `overflow`: whether it is in the second stream, if known. Raises BrokerError."""
        if overflow is None:
            await self.forget(region, request_id, overflow=False)
            overflow = time.monotonic() < self._overflow_until
            if not overflow:
                return
        stream, subject = _place(region, request_id, overflow=overflow)
        await self._jetstream.purge(stream, subject)


def _is_full(error: JetStreamError) -> bool:
    return any(f"maximum {what} exceeded" in error.description for what in ("messages", "bytes"))


def _place(region: str, request_id: str, *, overflow: bool) -> tuple[str, str]:
    """Return the stream that may hold a record, and its subject there."""
    if overflow:
        return subjects.more_tracking_stream(region), subjects.more_tracking_subject(region, request_id)
    return subjects.tracking_stream(region), subjects.tracking_subject(region, request_id)


def _tracked(request_id: str, region: str, data: bytes, headers: Mapping[str, str]) -> Tracked:
    message = nvcf_pb2.WorkerResultTracking.FromString(data)
    return Tracked(
        request_id,
        region,
        message.functionId,
        message.functionVersionId,
        message.requestTime.ToNanoseconds(),
        STAYS in headers,
        headers.get(ACCOUNT, ""),
        headers.get(TRACEPARENT),
    )
