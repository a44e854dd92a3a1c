"""Requests that outlive their callers: they stay queued, and their responses are stored.

Before the gateway may say 202, three things must be there: the request in the queue (it is), its body where
any replica finds it, and the tracking record by which a poll finds the version (protocol.md, section 4).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import BucketFullError, ObjectBucket, StoredObject
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.durability import Durability
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.exchange.call import Call
from nvcf_gateway.exchange.pending import Pending
from nvcf_gateway.queue.regional_buckets import RegionalBuckets
from nvcf_gateway.quotas.limits import Quota
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.results.result_writer import KeptRequest
from nvcf_gateway.results.store import ResultStore
from nvcf_gateway.results.tracking import Tracked, Tracking
from nvcf_gateway.telemetry.http_span import current_traceparent

_log = logging.getLogger(__name__)

BODY_PATIENCE = 5.0
ACCOUNT = "nvcf-account"
"""Header of a stored body: the account that keeps it, percent-encoded."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Retention:
    """Makes requests outlive their callers, and this replica."""

    config: GatewayConfig
    bodies: RegionalBuckets
    results: Mapping[str, ResultStore]
    tracking: Tracking
    durability: Durability
    usage: Usage

    def kept(
        self, request_id: str, of: tuple[str, str, str], region: str, *, keyed: bool, once: bool = False
    ) -> KeptRequest:
        """Return where the response of a request is stored.

        `of`: the account that called, and the ids of function and version. `once`: the response goes when it
        has been fetched.
        """
        return KeptRequest(self.config, self.results[region], request_id, *of, region, keyed, once)

    def kept_call(self, call: Call, tracking: Tracking | None = None) -> KeptRequest:
        """Return where the response of `call` is stored while its caller waits."""
        of = (call.caller.nca_id, call.version.function_id, call.version.id)
        region, keyed = self.config.region, call.keyed
        return KeptRequest(
            self.config,
            self.results[region],
            call.request_id,
            *of,
            region,
            keyed,
            not keyed,
            call.settle,
            tracking,
        )

    def kept_later(self, call: Call) -> KeptRequest:
        """Return where the response of `call` is stored when its caller no longer waits."""
        return self.kept_call(call, self.tracking)

    async def track(self, call: Call) -> None:
        """Write the tracking record. Raises BrokerError."""
        version, started = call.version, int(call.started * 1e9)
        ids = (call.request_id, self.config.region, version.function_id, version.id)
        await self.tracking.record(
            Tracked(*ids, started, call.keyed, call.caller.nca_id, current_traceparent())
        )

    async def promise(self, call: Call) -> None:
        """Write the tracking record, and wait until it and the request are on disk. Raises BrokerError."""
        await self.track(call)
        await self.durability.commit()

    async def promise_running(self, call: Call) -> None:
        """Promise a call that its worker goes on with. If it dies, another one needs the body.

        Raises BrokerError. A body that is still coming, or for which there is no room, is not kept: the call
        runs already.
        """
        if call.full_by_attach or not call.body.complete:
            try:
                if await call.body.receive_all(BODY_PATIENCE, self.config.kept_body_bytes):
                    await self._store_body(call, call.body.spooled())
                    if call.settle is not None:
                        await call.settle()
            except (HttpProblem, BucketFullError, OSError) as error:
                _log.warning("body not kept: %s", error, extra={"request_id": call.request_id})
        await self.promise(call)

    async def _store_body(self, call: Call, rest: AsyncIterator[bytes]) -> StoredObject:
        # All of it has been received. A caller need not announce its length.
        account = call.caller.nca_id
        self.usage.require(account, Quota.KEPT_BYTES, call.body.spooled_bytes)
        stored = await self.bodies.put(call.request_id, rest, {ACCOUNT: quote(account)})
        self.usage.add_kept_body(account, stored.size)
        return stored

    async def keep(self, call: Call, pending: Pending, *, told: bool) -> bool:
        """Store what a later delivery needs; return False if the body is not there in time.

        `told`: its caller learns the id of the request, by which it can be polled. Raises BrokerError if the
        broker does not take it, QuotaExceeded if the account keeps too many answers.
        """
        if told and not call.keyed:
            self.usage.require_room_for_an_answer(call.caller.nca_id)
        try:
            if pending.request_token is not None:
                if not await call.body.receive_all(BODY_PATIENCE, self.config.kept_body_bytes):
                    _log.info(
                        "request not kept: its body is still coming", extra={"request_id": call.request_id}
                    )
                    return False
                stored = await self._store_body(call, call.body.stream())
                pending.body = StoredBody(self.bodies.own, stored)
            if call.settle is not None:
                await call.settle()
            if told:
                await self.promise(call)
        except (BrokerError, OSError) as error:
            _log.warning("request not kept: %s", error, extra={"request_id": call.request_id})
            raise BrokerError(f"the request could not be kept: {error}") from error
        call.body.close()
        pending.let_go()
        return True

    async def stored_body(self, request_id: str) -> StoredBody | None:
        """Return the stored body of a request, None if all of it is in the message. Raises BrokerError."""
        found = await self.bodies.find(request_id)
        return None if found is None else StoredBody(*found)

    async def drop_body(self, request_id: str) -> None:
        """Delete the stored body. Raises BrokerError."""
        found = await self.bodies.find(request_id)
        if found is not None:
            bucket, stored = found
            await bucket.delete(request_id)
            self.usage.add_kept_body(unquote(stored.headers.get(ACCOUNT, "")), -stored.size)
