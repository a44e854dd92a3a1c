"""Forms of the tokens that cross process boundaries; signing and checking is the gateway's business."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass

from nvcf_proto.errors import InvalidToken

WORKER_TOKEN_ISSUER = "nvcf"
WORKER_TOKEN_AUDIENCE = "worker"
TASK_TOKEN_AUDIENCE = "task"


def encode_broker_token(worker_token: str) -> str:
    """Return the NATS CONNECT token that carries a worker token (protocol.md, section 2.1)."""
    payload = json.dumps(
        {"account": "Worker", "pluginName": "webhook", "payload": worker_token}, separators=(",", ":")
    )
    return base64.urlsafe_b64encode(payload.encode()).rstrip(b"=").decode()


def decode_broker_token(text: str) -> str:
    """Return the worker token inside a CONNECT token. Raises InvalidToken for any other form."""
    try:
        padded = text.encode() + b"=" * (-len(text) % 4)
        members = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if members["account"] != "Worker":
            raise InvalidToken(f"account is {str(members['account'])[:32]!r}, expected 'Worker'")
        payload = members["payload"]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        if isinstance(error, InvalidToken):
            raise
        raise InvalidToken("not a broker token: unpadded base64url of a JSON object expected") from error
    if not isinstance(payload, str) or not payload:
        raise InvalidToken("broker token has no payload")
    return payload


@dataclass(frozen=True)
class WorkerClaims:
    """Claims of a worker token about its bearer. Times are Unix times in seconds.

    has_record: whether there was a record of the instance when the token was issued. Then the token is void
    without that record; others (workers that no agent started) are void when their deployment ends.
    request_id: the order that led to the instance. first: the token was issued before the agent gave the
    instance its id, so it covers every id that an agent may give to an instance of that order.
    """

    instance_id: str
    function_id: str
    version_id: str
    nca_id: str
    expires_at: float
    issued_at: float = 0.0
    has_record: bool = False
    request_id: str = ""
    first: bool = False

    def covers(self, *, function_id: str, version_id: str, instance_id: str | None = None) -> bool:
        """Return whether the bearer may act for this function, version and (when given) instance."""
        return (
            self.function_id == function_id
            and self.version_id == version_id
            and (instance_id is None or self.instance_id == instance_id or self._may_become(instance_id))
        )

    def _may_become(self, instance_id: str) -> bool:
        return self.first and may_be_instance_of(instance_id, self.request_id)


def may_be_instance_of(instance_id: str, request_id: str) -> bool:
    """Return whether an id has the form that agents give to an instance of this order."""
    name = request_id if request_id.startswith("sr-") else f"sr-{request_id}"
    return re.fullmatch(rf"([0-9]{{1,4}}-)?{re.escape(name)}(-task|-miniservice)?", instance_id) is not None
