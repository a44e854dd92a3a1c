"""A queue message as the worker sees it: parsing and checking, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import DecodeError

from nvcf_proto import headers as names
from nvcf_proto import settings
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import parse_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.errors import MalformedWork


@dataclass(frozen=True, slots=True)
class AttachTarget:
    """Where `request-attach` is reached (protocol.md, section 3.1).

    `request_token` is None when the message carries the whole body.
    """

    url: str
    proxy: str | None
    response_token: str
    request_token: str | None


class ReplyAddress(NamedTuple):
    """Where a caller is reached: `request-attach` and, if the gateway offers it, the inline reply."""

    target: AttachTarget
    reply_subject: str | None = None
    reply_max_bytes: int = 0


NOWHERE = ReplyAddress(AttachTarget("", None, "", None))
"""The address of a stateful session, whose responses go through its tunnel."""


@dataclass(frozen=True, slots=True)
class TunnelTarget:
    """Where a session's link is dialled to (protocol.md, section 7.3)."""

    url: str
    token: str


@dataclass(slots=True)
class Work:
    """One request from the queue. `ack_subject` changes when the broker delivers it again.

    attempt: 1 for the first delivery. last: whether the queue delivers it no more for now; limited: whether
    it ever stops. kept: whether somebody may come back for its response. has_fallback: whether gateways
    answer fallback lookups.
    """

    message: nvcf_pb2.WorkerInvokeFunctionRequest
    request_id: str
    region: str
    ack_subject: str
    attempt: int
    received_at: float
    reply_address: ReplyAddress
    trace: Mapping[str, str] | None
    tunnel: TunnelTarget | None = None
    reconnect_subject: str | None = None
    last: bool = False
    limited: bool = False
    kept: bool = False
    has_fallback: bool = False


def parse_work(
    data: bytes,
    ack_subject: str,
    nats_headers: Mapping[str, str] | None,
    *,
    region: str,
    now: float,
    max_deliver: int = 0,
) -> Work:
    """Read a message of a request stream. `now` is the Unix time of its arrival.

    Raises MalformedWork when it is no request, or none that this worker can serve.
    """
    try:
        message = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(data)
    except DecodeError as error:
        raise MalformedWork("the message is no WorkerInvokeFunctionRequest") from error
    try:
        request_id = parse_id(message.requestId, "requestId")
    except InvalidId as error:
        raise MalformedWork(str(error)) from error
    trace, reconnect, kept, has_fallback, earlier = None, None, False, False, 0
    delivered = delivery_attempt(ack_subject)
    stateful = message.HasField("statefulConfig")
    if not stateful and not message.HasField("statelessConfig"):
        raise MalformedWork("it has no statelessConfig, so there is nowhere to send a response")
    if nats_headers:
        trace = nats_headers if "traceparent" in nats_headers else None
        reconnect = nats_headers.get(names.RECONNECT_SUBJECT) or None
        kept = nats_headers.get(names.KEPT) == "true"
        has_fallback = names.of_this_platform(nats_headers)
        count = nats_headers.get(names.DELIVERIES, "")
        earlier = int(count) if count.isascii() and count.isdigit() else 0
    return Work(
        message=message,
        request_id=request_id,
        region=region,
        ack_subject=ack_subject,
        attempt=earlier + delivered,
        received_at=now,
        reply_address=NOWHERE if stateful else _reply_address(message.statelessConfig, nats_headers),
        trace=trace,
        tunnel=tunnel_target(message) if stateful else None,
        reconnect_subject=reconnect,
        last=0 < max_deliver <= delivered,
        limited=max_deliver > 0,
        kept=kept,
        has_fallback=has_fallback,
    )


def tunnel_target(message: nvcf_pb2.WorkerInvokeFunctionRequest) -> TunnelTarget:
    """Return where a session's link goes. Raises MalformedWork, also for http3Config alone."""
    for connection in message.statefulConfig.connectionConfigs:
        if connection.WhichOneof("config") != "http1Config":
            continue
        http1 = connection.http1Config
        if not http1.proxyURI or not http1.proxyAuthorizationToken:
            raise MalformedWork("proxyURI or proxyAuthorizationToken is empty")
        return TunnelTarget(http1.proxyURI, http1.proxyAuthorizationToken)
    raise MalformedWork("statefulConfig has no http1Config")


def parse_reply_address(data: bytes, nats_headers: Mapping[str, str] | None) -> ReplyAddress:
    """Read the address that a fallback gateway offers: an encoded StatelessConfig ([ext]).

    Raises MalformedWork.
    """
    try:
        config = nvcf_pb2.StatelessConfig.FromString(data)
    except DecodeError as error:
        raise MalformedWork("the reply is no StatelessConfig") from error
    return _reply_address(config, nats_headers)


def _reply_address(config: nvcf_pb2.StatelessConfig, nats_headers: Mapping[str, str] | None) -> ReplyAddress:
    subject, limit = _inline_reply(nats_headers or {})
    return ReplyAddress(_target(config), subject, limit)


def _target(config: nvcf_pb2.StatelessConfig) -> AttachTarget:
    for connection in config.connectionConfigs:
        if connection.WhichOneof("config") != "http1Config":
            continue
        http1 = connection.http1Config
        if not http1.targetURI.startswith(("http://", "https://")):
            raise MalformedWork(f"targetURI is no http(s) URL: {http1.targetURI[:64]!r}")
        if not http1.responseAuthorizationToken:
            raise MalformedWork("responseAuthorizationToken is empty")
        if not (http1.responseAuthorizationToken + http1.requestAuthorizationToken).isprintable():
            raise MalformedWork("a token has characters that no header can carry")
        return AttachTarget(
            url=http1.targetURI.rstrip("/") + settings.ATTACH_PATH,
            proxy=http1.proxyURI or None,
            response_token=http1.responseAuthorizationToken,
            request_token=http1.requestAuthorizationToken or None,
        )
    raise MalformedWork("statelessConfig has no http1Config")


def _inline_reply(nats_headers: Mapping[str, str]) -> tuple[str | None, int]:
    subject = nats_headers.get(names.REPLY_SUBJECT)
    limit = nats_headers.get(names.REPLY_MAX_BYTES, "")
    if not subject or not limit.isascii() or not limit.isdigit():
        return None, 0
    return subject, int(limit)


def delivery_attempt(ack_subject: str) -> int:
    """Return how often the broker has delivered a message, by its ack subject; 1 if that is unknown.

    Forms, see NATS ADR-15: `$JS.ACK.STREAM.CONSUMER.DELIVERED.…` (9 tokens) and
    `$JS.ACK.DOMAIN.HASH.STREAM.CONSUMER.DELIVERED.…` (11 or more).
    """
    tokens = ack_subject.split(".")
    at = 4 if len(tokens) == 9 else 6
    try:
        return max(1, int(tokens[at]))
    except (IndexError, ValueError):
        return 1


def poll_seconds(headers: Iterable[tuple[str, str]]) -> int:
    """Return the poll time that request headers (lower-case names) ask for (protocol.md, section 4.3)."""
    accept = ""
    for name, value in headers:
        if name == "nvcf-poll-seconds":
            text = value.strip()
            if text.isascii() and text.isdigit():
                return min(settings.POLL_SECONDS_MAX, max(settings.POLL_SECONDS_MIN, int(text)))
        elif name == "accept":
            accept = value.strip()
    return (
        settings.POLL_SECONDS_EVENT_STREAM if accept == names.EVENT_STREAM else settings.POLL_SECONDS_DEFAULT
    )


def sent_headers(work: Work) -> list[tuple[str, str]]:
    """Return the request headers that a message carries."""
    return [(pair.key, pair.value) for pair in work.message.requestHeaders]


def request_time(work: Work) -> float:
    """Return the Unix time at which the gateway took the request, or else of its arrival here.

    By the clock of a gateway that is ahead, it arrived before it was taken; then its arrival counts.
    """
    stamp = work.message.requestTime
    if not stamp.seconds:
        return work.received_at
    return min(work.received_at, stamp.seconds + stamp.nanos / 1e9)
