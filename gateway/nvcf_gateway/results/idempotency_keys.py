"""`Idempotency-Key` [ext]: a repeated POST follows the first one instead of being executed again.

The call that creates the record of a key is executed. Every other call with the key waits for that request as
a poll does. Records live as long as stored results. Source of the header's meaning:
draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

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


FOLLOW_PATIENCE = 10.0
"""How long a call that repeats a key waits for a request that is found nowhere, seconds."""
PUBLISH_SECONDS = 15.0
"""How long a call with a key is tried to be queued."""
SETTLED_SECONDS = 30.0
"""Age of a key's record from which a request that is found nowhere is none any more.

Its claim is answered within 10 s (two requests to the broker), it is queued within `PUBLISH_SECONDS`, and the
last attempt may be on its way for 5 s.
"""
LEAST_PATIENCE = 1.0
"""Before a request that is found nowhere counts as lost, whatever the clocks of gateway and broker say."""
UNREAD = "unread"
"""Stands for the digest of a body that was answered before all of it came."""
_BODY_DIFFERS = f"header {HEADER}: this key was used for a request with another body"


@dataclass(frozen=True)
class Fingerprint:
    """What tells two requests with one key apart: digests of `head` and, once all of it has come, `body`."""

    head: str
    body: str | None


@dataclass(frozen=True)
class Claim:
    """The request that a key stands for, and its region; `first`: this call has the key.

    `revision` is the record's sequence in its bucket, `stored_at` (Unix time) when the broker took it, 0 if
    that is not known. `body` is the digest of the request's body, None until
    its gateway has seen all of it.
    """

    request_id: str
    version_id: str
    first: bool
    subject: str
    region: str
    revision: int
    fingerprint: str = ""
    body: str | None = None
    stored_at: float = 0.0


def patience(claim: Claim, now: float) -> float:
    """Return how many seconds a repeated call waits for a request that is found nowhere. `now`: Unix time.

    Less and less, so that calls with a short poll time do not begin to wait anew for ever. But never nothing:
    a clock that is ahead of the broker's would free the key of a call that is being queued just now.
    """
    if not claim.stored_at:
        return FOLLOW_PATIENCE
    return min(FOLLOW_PATIENCE, max(LEAST_PATIENCE, claim.stored_at + SETTLED_SECONDS - now))


def checked_key(value: str | None) -> str | None:
    """Return the key of a request, None without one. Raises HttpProblem 400."""
    if value is None:
        return None
    key = value.strip()
    if not key or len(key) > MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise HttpProblem(400, f"header {HEADER} takes 1 to {MAX_KEY_LENGTH} printable ASCII characters")
    return key


# Other headers, such as dates and trace ids, may differ when a client repeats a call.
_TELLING = frozenset(("accept", "content-encoding", "content-type"))
_SAY_NOTHING = (("accept", "*/*"),)
_TELLING_PREFIX = "nvcf-feature-"


def head_digest(method: str, path: str, headers: Iterable[tuple[str, str]], assets: Iterable[str]) -> str:
    """Return the digest of all that decides what runs, but the body."""
    telling = sorted(
        (lowered, value.strip())
        for name, value in headers
        if ((lowered := name.lower()) in _TELLING and (lowered, value) not in _SAY_NOTHING)
        or lowered.startswith(_TELLING_PREFIX)
    )
    return hashlib.sha256(json.dumps([method, path, telling, list(assets)]).encode()).hexdigest()


def is_same_body(first: str | None, repeated: str) -> bool:
    """Decide whether a repeated call has the body of the first one; False: not known yet.

    Raises HttpProblem 422 if it has another one, or if that can never be known.
    """
    if first is None:
        return False
    if first == UNREAD:
        raise HttpProblem(
            422,
            f"header {HEADER}: the first call was answered before its body came: it cannot be compared",
        )
    if first != repeated:
        raise HttpProblem(422, _BODY_DIFFERS)
    return True


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
        fingerprint: Fingerprint,
        request_id: str | None = None,
    ) -> Claim:
        """Claim `key` for a new request (with that id, or any), or find out which request has it.

        Raises HttpProblem 422 if the key was used for another request, BrokerError.
        """
        subject = _subject(account, function_id, key)
        claim = Claim(
            request_id or new_id(),
            version_id,
            True,
            subject,
            self._region,
            0,
            fingerprint.head,
            fingerprint.body,
        )
        try:
            return replace(claim, revision=await self._write(claim, 0))
        except BrokerUnavailableError:
            # The acknowledgement may have been lost, and then nobody else would ever free the key.
            found = await self.current(subject)
            if found is None or found.request_id != claim.request_id:
                raise
            return replace(claim, revision=found.revision)
        except JetStreamError as error:
            if not error.conflict:
                raise
        known = await self.holder(account, function_id, key, fingerprint)
        if known is None:
            raise BrokerUnavailableError("the idempotency key has just been released: try again")
        return known

    async def use_once(self, account: str, ticket: str) -> bool:
        """Use up a ticket; return whether it was the first time. Raises BrokerError."""
        claim = await self.claim(account, "dashboard", "dashboard", ticket, Fingerprint("ticket", None))
        return claim.first

    async def holder(
        self, account: str, function_id: str, key: str, fingerprint: Fingerprint
    ) -> Claim | None:
        """Return the claim of the request that has `key`, None if it is free.

        Raises HttpProblem 422 if that is another request, BrokerError.
        """
        known = await self.current(_subject(account, function_id, key))
        if known is None:
            return None
        if known.fingerprint != fingerprint.head:
            raise HttpProblem(
                422, f"header {HEADER}: this key was used for a request with another path, header or asset"
            )
        if fingerprint.body is not None:
            is_same_body(known.body, fingerprint.body)
        return known

    async def current(self, subject: str) -> Claim | None:
        """Return what a key stands for now, None if it is free. Raises BrokerError."""
        message = await self._jetstream.direct_get(_STREAM, last_by_subj=subject)
        if message is None:
            return None
        known = json.loads(message.data)
        headers = message.headers or {}
        return Claim(
            str(known["requestId"]),
            str(known["versionId"]),
            False,
            subject,
            str(known.get("region", self._region)),
            int(headers["Nats-Sequence"]),
            str(known["fingerprint"]),
            known.get("bodyDigest"),
            datetime.fromisoformat(headers["Nats-Time-Stamp"]).timestamp(),
        )

    async def complete(self, claim: Claim, body: str) -> Claim:
        """Record the digest of the whole body, by which repeated calls are compared. Raises BrokerError."""
        completed = replace(claim, body=body)
        try:
            revision = await self._write(completed, claim.revision)
        except JetStreamError as error:
            # An acknowledgement may have been lost before.
            known = await self.current(claim.subject) if error.conflict else None
            if known is None or (known.request_id, known.body) != (claim.request_id, body):
                raise
            revision = known.revision
        return replace(completed, revision=revision)

    async def _write(self, claim: Claim, revision: int) -> int:
        record = {
            "requestId": claim.request_id,
            "versionId": claim.version_id,
            "region": claim.region,
            "fingerprint": claim.fingerprint,
        }
        if claim.body is not None:
            record["bodyDigest"] = claim.body
        guard = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        return await self._jetstream.publish(claim.subject, json.dumps(record).encode(), guard)

    async def release(self, claim: Claim) -> None:
        """Free a key whose request came to nothing. Raises BrokerError.

        A claim of another request stays, since several calls that followed the same request may free its key
        in turn.
        """
        known = await self.current(claim.subject)
        if known is not None and known.request_id == claim.request_id:
            await self._jetstream.purge(_STREAM, claim.subject, before=known.revision + 1)


def _subject(account: str, function_id: str, key: str) -> str:
    name = hashlib.sha256(f"{account}\0{function_id}\0{key}".encode()).hexdigest()
    return f"$KV.{_BUCKET}.{name}"
