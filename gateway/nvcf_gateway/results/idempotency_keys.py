"""`Idempotency-Key` [ext]: a repeated POST joins the first instead of running again.

Who creates the record of a key first runs; everybody else follows that request as a poll does. Records live
as long as parked results. Source of the header's meaning: draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.msg import Msg

from nvcf_broker.connection import describe_error
from nvcf_broker.requests import BrokerRequests
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import HttpProblem, QueueError
from nvcf_proto import subjects
from nvcf_proto.ids import new_id

HEADER = "Idempotency-Key"
MAX_KEY_LENGTH = 255
API_TIMEOUT = 5.0
_BUCKET = "nvcf_idempotency"
_NANOSECONDS = 1_000_000_000
_STREAM_NAME_IN_USE = 10058
_WRONG_LAST_SEQUENCE = 10071


@dataclass(frozen=True)
class Claim:
    """Which request a key stands for, queued in which region; `first` when this call made it.

    `revision` is the record's sequence in its bucket.
    """

    request_id: str
    version_id: str
    first: bool
    subject: str
    region: str
    revision: int


def checked_key(value: str | None) -> str | None:
    """The key of a request, None without one. Raises HttpProblem 400."""
    if value is None:
        return None
    key = value.strip()
    if not key or len(key) > MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise HttpProblem(400, f"header {HEADER} takes 1 to {MAX_KEY_LENGTH} printable ASCII characters")
    return key


def fingerprint(method: str, length: int | None, prefix: bytes) -> str:
    """What tells two requests under one key apart: method, length and beginning of the body."""
    return hashlib.sha256(f"{method} {length} ".encode() + prefix).hexdigest()


class Idempotency:
    """Claims of keys, shared by all replicas."""

    def __init__(self, requests: BrokerRequests, config: GatewayConfig) -> None:
        self._requests = requests
        self._ttl = config.results_ttl
        self._replicas = config.replicas
        self._region = config.region

    async def ensure(self) -> None:
        """Make the bucket. Raises QueueError."""
        config = {
            "name": f"KV_{_BUCKET}",
            "subjects": [f"$KV.{_BUCKET}.>"],
            "storage": "file",
            "num_replicas": self._replicas,
            "max_msgs_per_subject": 1,
            "max_age": int(self._ttl * _NANOSECONDS),
            "discard": "new",
            "allow_direct": True,
            "allow_rollup_hdrs": True,
        }
        answer = await self._call(f"{subjects.API_PREFIX}.STREAM.CREATE.KV_{_BUCKET}", config)
        error = answer.get("error")
        if error is not None and error.get("err_code") != _STREAM_NAME_IN_USE:
            raise QueueError(f"cannot create bucket {_BUCKET}: {error.get('description')}")

    async def claim(
        self,
        account: str,
        function_id: str,
        version_id: str,
        key: str,
        print_: str,
        request_id: str | None = None,
    ) -> Claim:
        """Claim `key` for a new request (of that id, or any), or learn which one has it.

        Raises HttpProblem 422 when the key was used for another request, QueueError.
        """
        digest = hashlib.sha256(f"{account}\0{function_id}\0{key}".encode()).hexdigest()
        subject = f"$KV.{_BUCKET}.{digest}"
        request_id = request_id or new_id()
        record = {
            "requestId": request_id,
            "versionId": version_id,
            "region": self._region,
            "fingerprint": print_,
        }
        answer = await self._call(subject, record, {"Nats-Expected-Last-Subject-Sequence": "0"})
        error = answer.get("error")
        if error is None:
            return Claim(request_id, version_id, True, subject, self._region, int(answer["seq"]))
        if error.get("err_code") != _WRONG_LAST_SEQUENCE:
            raise QueueError(f"cannot claim the idempotency key: {error.get('description')}")
        message = await self._message(
            f"{subjects.API_PREFIX}.DIRECT.GET.KV_{_BUCKET}", {"last_by_subj": subject}
        )
        headers = message.headers or {}
        if headers.get("Status"):
            raise QueueError("the idempotency key has just been released: try again")
        known = json.loads(message.data)
        if known["fingerprint"] != print_:
            raise HttpProblem(422, f"header {HEADER}: this key was used for a request with another body")
        return Claim(
            str(known["requestId"]),
            str(known["versionId"]),
            False,
            subject,
            str(known.get("region", self._region)),
            int(headers["Nats-Sequence"]),
        )

    async def release(self, claim: Claim) -> None:
        """Forget a key whose request came to nothing. Raises QueueError.

        A newer claim stays: several who followed the same request may give it up, one after the other.
        """
        query = {"filter": claim.subject, "seq": claim.revision + 1}
        await self._call(f"{subjects.API_PREFIX}.STREAM.PURGE.KV_{_BUCKET}", query)

    async def _call(
        self, subject: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        value = json.loads((await self._message(subject, body, headers)).data)
        return value if isinstance(value, dict) else {}

    async def _message(
        self, subject: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> Msg:
        try:
            return await self._requests.request(
                subject, json.dumps(body).encode(), timeout=API_TIMEOUT, headers=headers
            )
        except (nats.errors.Error, TimeoutError) as error:
            raise QueueError(f"the broker did not answer: {describe_error(error)}") from error
