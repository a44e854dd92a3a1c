"""`Idempotency-Key` [ext]: a repeated POST follows the first one instead of being executed again.

The call that creates the record of a key is executed. Every other call with the key waits for that request as
a poll does. Records live as long as stored results. Source of the header's meaning:
draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from nvcf_broker.errors import BrokerUnavailableError, JetStreamError
from nvcf_broker.jetstream import NANOSECONDS, JetStream, Requester
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import HttpProblem
from nvcf_proto.ids import new_id
from nvcf_proto.stores import IDEMPOTENCY

HEADER = "Idempotency-Key"
MAX_KEY_LENGTH = 255
_BUCKET = "nvcf_idempotency"
_STREAM = f"KV_{_BUCKET}"


@dataclass(frozen=True)
class Claim:
    """The request that a key stands for, and its region; `first`: this call has the key.

    `revision` is the record's sequence in its bucket.
    """

    request_id: str
    version_id: str
    first: bool
    subject: str
    region: str
    revision: int


def checked_key(value: str | None) -> str | None:
    """Return the key of a request, None without one. Raises HttpProblem 400."""
    if value is None:
        return None
    key = value.strip()
    if not key or len(key) > MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise HttpProblem(400, f"header {HEADER} takes 1 to {MAX_KEY_LENGTH} printable ASCII characters")
    return key


def fingerprint(method: str, length: int | None, prefix: bytes) -> str:
    """Return what tells two requests with one key apart: method, length and beginning of the body."""
    return hashlib.sha256(f"{method} {length} ".encode() + prefix).hexdigest()


class IdempotencyKeys:
    """Claims of keys, shared by all replicas."""

    def __init__(self, requests: Requester, config: GatewayConfig) -> None:
        self._jetstream = JetStream(requests)
        self._ttl = config.results_ttl
        self._bounds = IDEMPOTENCY.bounds(config.data_max)
        self._replicas = config.replicas
        self._region = config.region

    async def ensure(self) -> None:
        """Create the bucket. Raises BrokerError."""
        config = {
            "name": _STREAM,
            "subjects": [f"$KV.{_BUCKET}.>"],
            "storage": "file",
            "num_replicas": self._replicas,
            **self._bounds,
            "max_age": int(self._ttl * NANOSECONDS),
            "discard": "new",
            "allow_direct": True,
            "allow_rollup_hdrs": True,
        }
        await self._jetstream.ensure_stream(config)

    async def claim(
        self,
        account: str,
        function_id: str,
        version_id: str,
        key: str,
        digest: str,
        request_id: str | None = None,
    ) -> Claim:
        """Claim `key` for a new request (with that id, or any), or find out which request has it.

        Raises HttpProblem 422 if the key was used for another request, BrokerError.
        """
        name = hashlib.sha256(f"{account}\0{function_id}\0{key}".encode()).hexdigest()
        subject = f"$KV.{_BUCKET}.{name}"
        request_id = request_id or new_id()
        record = {
            "requestId": request_id,
            "versionId": version_id,
            "region": self._region,
            "fingerprint": digest,
        }
        try:
            revision = await self._jetstream.publish(
                subject, json.dumps(record).encode(), {"Nats-Expected-Last-Subject-Sequence": "0"}
            )
            return Claim(request_id, version_id, True, subject, self._region, revision)
        except JetStreamError as error:
            if not error.conflict:
                raise
        message = await self._jetstream.direct_get(_STREAM, last_by_subj=subject)
        if message is None:
            raise BrokerUnavailableError("the idempotency key has just been released: try again")
        known = json.loads(message.data)
        if known["fingerprint"] != digest:
            raise HttpProblem(422, f"header {HEADER}: this key was used for a request with another body")
        return Claim(
            str(known["requestId"]),
            str(known["versionId"]),
            False,
            subject,
            str(known.get("region", self._region)),
            int((message.headers or {})["Nats-Sequence"]),
        )

    async def release(self, claim: Claim) -> None:
        """Free a key whose request came to nothing. Raises BrokerError.

        A newer claim stays, since several calls that followed the same request may free its key in turn.
        """
        await self._jetstream.purge(_STREAM, claim.subject, before=claim.revision + 1)
