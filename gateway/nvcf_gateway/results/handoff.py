"""Requests that outlive their callers ([ext] of section 4): kept in the queue, their answers parked.

What has to be there before a 202 may be said: the request in the queue (it is), its body where any replica
finds it, and the tracking record by which a poll finds the version.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import ObjectBucket, StoredObject
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.exchange.call import Call
from nvcf_gateway.exchange.pending import Keeper, Pending, PendingRequests
from nvcf_gateway.exchange.sinks import Sink
from nvcf_gateway.queue.regional_buckets import RegionalBuckets
from nvcf_gateway.results.store import ResultStore
from nvcf_gateway.results.store_sink import NO_RESULT, NO_RESULT_OF_KEY, ParkingSink
from nvcf_gateway.results.tracking import Tracked, Tracking
from nvcf_gateway.telemetry.http_span import current_traceparent
from nvcf_proto.h1 import ResponseHead

_log = logging.getLogger(__name__)

BODY_PATIENCE = 5.0


class StoredBody:
    """The part of a request's body that did not fit into its message, in the object store."""

    prefix = b""

    def __init__(self, bucket: ObjectBucket, stored: StoredObject) -> None:
        self._bucket = bucket
        self._stored = stored

    @property
    def rest_length(self) -> int | None:
        return self._stored.size

    def stream(self) -> AsyncIterator[bytes]:
        return self._bucket.read(self._stored)

    def close(self) -> None:
        pass


class Keeping:
    """Makes requests outlive their callers, and this replica."""

    def __init__(
        self, config: GatewayConfig, bodies: RegionalBuckets, results: ResultStore, tracking: Tracking
    ) -> None:
        self._config = config
        self._results = results
        self._tracking = tracking
        self._bodies = bodies

    def destination(self, call: Call) -> tuple[Sink, Keeper]:
        """Where the answer of `call` goes once its caller has stopped waiting."""
        return self.sink_of(call), self.keeper(call)

    def keeper(self, call: Call) -> Keeper:
        """Parks an inline answer of `call`."""
        of = (call.request_id, call.version.function_id, call.version.id)
        return self.keeper_for(*of, no_result=_no_result(call))

    def sink_of(self, call: Call) -> ParkingSink:
        """Parks a streamed answer of `call`."""
        of = (call.request_id, call.version.function_id, call.version.id)
        return self.sink(*of, no_result=_no_result(call))

    def keeper_for(
        self,
        request_id: str,
        function_id: str,
        version_id: str,
        store: ResultStore | None = None,
        no_result: frozenset[int] = NO_RESULT,
    ) -> Keeper:
        """Parks an inline answer. The keeper raises HttpProblem 503 when the store does not take it."""

        async def keep(head: ResponseHead, body: bytes) -> bool:
            sink = self.sink(request_id, function_id, version_id, store, no_result)
            await sink.complete(head, body)
            return not sink.late

        return keep

    def sink(
        self,
        request_id: str,
        function_id: str,
        version_id: str,
        store: ResultStore | None = None,
        no_result: frozenset[int] = NO_RESULT,
    ) -> ParkingSink:
        """Parks a streamed answer, in the own region unless another one's store is given."""
        directory: Path | None = self._config.spool_directory
        return ParkingSink(
            store or self._results,
            request_id,
            function_id,
            version_id,
            memory_bytes=self._config.spool_memory_bytes,
            directory=directory,
            no_result=no_result,
        )

    async def track(self, call: Call) -> None:
        """Write the tracking record. Raises BrokerError."""
        await self._tracking.record(
            Tracked(
                call.request_id,
                self._config.region,
                call.version.function_id,
                call.version.id,
                int(call.started * 1e9),
                stays=call.survives,
                trace=current_traceparent(),
            )
        )

    async def keep(self, call: Call, pending: Pending) -> bool:
        """Store what a later delivery needs; False when its body is not there in time.

        Raises BrokerError when the broker does not take it.
        """
        try:
            if pending.request_token is not None:
                if not await call.body.receive_all(BODY_PATIENCE, self._config.kept_body_bytes):
                    _log.info(
                        "request not kept: its body is still coming", extra={"request_id": call.request_id}
                    )
                    return False
                stored = await self._bodies.put(call.request_id, call.body.stream(), {})
                pending.body = StoredBody(self._bodies.own, stored)
            await self.track(call)
        except (BrokerError, OSError) as error:
            _log.warning("request not kept: %s", error, extra={"request_id": call.request_id})
            raise BrokerError(f"the request could not be kept: {error}") from error
        call.body.close()
        return True

    def promised(self, pending: Pending, registry: PendingRequests) -> None:
        """Keep the door open for the answer as long as it would be kept itself."""
        registry.remove(pending)
        registry.add_detached(pending)
        registry.keep_for(pending, self._config.results_ttl)

    async def stored_body(self, request_id: str) -> StoredBody | None:
        """The kept body of a request, None if all of it is in the message. Raises BrokerError."""
        found = await self._bodies.find(request_id)
        return None if found is None else StoredBody(*found)

    async def drop_body(self, request_id: str) -> None:
        """Forget the kept body. Raises BrokerError."""
        await self._bodies.delete(request_id)


def _no_result(call: Call) -> frozenset[int]:
    return NO_RESULT_OF_KEY if call.survives else NO_RESULT
