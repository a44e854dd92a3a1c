"""Names of NATS streams, consumers and subjects and what a worker may touch.

See protocol.md, sections 2.2 and 8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

API_PREFIX = "$JS.API"

CANCEL_PREFIX = "nvcf.cancel"
POLLING_PREFIX = "rq_polling"
INLINE_REPLY_PREFIX = "nvcf.reply"
RATE_LIMIT_PREFIX = "nvcf.ratelimit"
AUTH_CALLOUT_SUBJECT = "$SYS.REQ.USER.AUTH"


def request_stream(region: str, version_id: str) -> str:
    """Return the stream that holds a version's queued requests in one region."""
    return f"rq_{region}_{version_id}"


def request_subject(region: str, version_id: str, request_id: str) -> str:
    """Return the subject of one queued request."""
    return f"rq.{region}.{version_id}.{request_id}"


_REQUEUED = ".again"


def requeued_subject(subject: str) -> str:
    """[ext] Return the other one of the two subjects of a request: one message a subject may be stored."""
    plain = subject.removesuffix(_REQUEUED)
    return plain if plain != subject else subject + _REQUEUED


def request_of(subject: str) -> str:
    """Return the request id in the subject of a queued request."""
    return subject.removesuffix(_REQUEUED).rpartition(".")[2]


def ack_subject(stream: str, consumer: str, sequence: int, deliveries: int) -> str:
    """Return where the delivery of a message is acknowledged (NATS ADR-15), as far as the broker reads it."""
    return f"$JS.ACK.{stream}.{consumer}.1.{sequence}.{deliveries}.0.0"


STARTED_SUBJECTS = "$JS.ACK.*.*.started.*"
"""[ext] Notes of workers and agents that a delivery which is handed back had been started."""


def started_subject(ack_subject: str) -> str | None:
    """[ext] Return where to note that the delivery with this ack subject had been started; None if unknown.

    It has the prefix of the ack subject, so whoever may acknowledge may note, and the broker's consumer does
    not read it.
    """
    tokens = ack_subject.split(".")
    return None if len(tokens) != 9 else ".".join((*tokens[:4], "started", tokens[5]))


def request_subjects(region: str, version_id: str) -> str:
    """Return the filter for all subjects of a request stream."""
    return f"rq.{region}.{version_id}.>"


ALL_REQUEST_SUBJECTS = "rq.>"
"""Filter for the subjects of all request streams."""


def closed_stream_subject(stream: str) -> str:
    """[ext] Return the subject of a request stream that is about to be removed and takes no requests."""
    return f"nvcf.closed.{stream}"


def version_of_request_stream(stream: str) -> str:
    """Return the version id in the name of a request stream."""
    return stream.rpartition("_")[2]


def request_consumer(region: str, version_id: str) -> str:
    """Return the durable consumer that all workers of a version share."""
    return f"rq_{region}_{version_id}_workers"


def tracking_stream(region: str) -> str:
    """Return the stream that remembers the version of each request id that was answered 202."""
    return f"requestToFunctionVersion_{region}"


def tracking_subject(region: str, request_id: str) -> str:
    """Return the subject of one tracking record."""
    return f"requestToFunctionVersion.{region}.{request_id}"


def more_tracking_stream(region: str) -> str:
    """[ext] Return the stream for the tracking records that the contract's full stream does not take."""
    return f"nvcf_tracking_{region}"


def more_tracking_subject(region: str, request_id: str) -> str:
    """[ext] Return the subject of a record there."""
    return f"nvcf.tracking.{region}.{request_id}"


def polling_subject(request_id: str) -> str:
    """Return the core subject on which the worker that holds a request answers polls."""
    return f"{POLLING_PREFIX}.{request_id}"


def version_polling_subject(version_id: str, request_id: str) -> str:
    """[ext] Return the same in the version's own space, which a worker may be granted by name."""
    return f"{POLLING_PREFIX}.{version_id}.{request_id}"


def fallback_subject(version_id: str) -> str:
    """[ext] Return where a worker asks for a fallback gateway when a request's gateway is gone."""
    return f"nvcf.attach.{version_id}"


def cancel_subject(version_id: str) -> str:
    """Return the core subject of cancel broadcasts to all workers of a version."""
    return f"{CANCEL_PREFIX}.{version_id}"


def reconnect_subject(request_id: str) -> str:
    """Return the subject that asks a worker to dial back for a stateful session."""
    return f"stateful_session.reconnect.{request_id}"


def version_reconnect_subject(version_id: str, request_id: str) -> str:
    """[ext] Return the same, in a space in which only the version's own workers may listen.

    The message carries a token that opens the caller's tunnel: on the contract's subject, which names no
    version, a permission could not keep it from other functions' workers.
    """
    return f"stateful_session.reconnect.{version_id}.{request_id}"


def session_lookup_stream(region: str) -> str:
    """Return the stream of stateful session records."""
    return f"stateful_session_lookup_{region}"


def session_lookup_subject(region: str, version_id: str, request_id: str) -> str:
    """Return the subject of one stateful session record."""
    return f"stateful_session.lookup.{region}.{version_id}.{request_id}"


def session_stream(region: str) -> str:
    """[ext] Return the stream of the gateways' own records of sessions, which no worker can write."""
    return f"nvcf_sessions_{region}"


def session_subject(region: str, request_id: str) -> str:
    """[ext] Return the subject of a gateway's record of a session."""
    return f"nvcf.session.{region}.{request_id}"


def worker_connection_name(version_id: str, instance_id: str) -> str:
    """Return the name that a worker gives its broker connection."""
    return f"worker_{version_id}_{instance_id}"


def worker_inbox_prefix(version_id: str, instance_id: str) -> str:
    """Return the prefix of a worker's inboxes, the only ones its connection may subscribe to."""
    return f"_INBOX.{version_id}.{instance_id}"


def inline_reply_prefix(version_id: str, gateway_id: str) -> str:
    """[ext] Return what a token follows in the subject of an inline reply to one gateway replica."""
    return f"{INLINE_REPLY_PREFIX}.{version_id}.{gateway_id}."


def rate_limit_take_subject(gateway_id: str) -> str:
    """[ext] Return where the replica that counts a version's calls is asked whether calls may pass."""
    return f"{RATE_LIMIT_PREFIX}.take.{gateway_id}"


RATE_LIMIT_JOIN_SUBJECT = f"{RATE_LIMIT_PREFIX}.join"
"""[ext] A gateway that starts asks here for the other gateways."""

RATE_LIMIT_MEMBERS_SUBJECT = f"{RATE_LIMIT_PREFIX}.members"
"""[ext] Heartbeats of the gateways."""

RATE_LIMIT_COUNTS_SUBJECT = f"{RATE_LIMIT_PREFIX}.counts"
"""[ext] Counts of a gateway, for the others to go on with when it ends."""

STATISTICS_SUBJECT = "nvcf.figures"
"""[ext] A gateway asks the others here for their statistics of some versions' recent calls."""


def next_message_subject(stream: str, consumer: str) -> str:
    """Return the JetStream API subject of a pull request."""
    return f"{API_PREFIX}.CONSUMER.MSG.NEXT.{stream}.{consumer}"


def consumer_info_subject(stream: str, consumer: str) -> str:
    """Return the JetStream API subject of a consumer's state and settings."""
    return f"{API_PREFIX}.CONSUMER.INFO.{stream}.{consumer}"


@dataclass(frozen=True)
class Permissions:
    """Subjects that a broker connection may publish to and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def worker_permissions(
    regions: Iterable[str], version_id: str, instance_id: str, *, wide_inbox: bool = False
) -> Permissions:
    """Return the least privileges of a worker's broker connection (protocol.md, section 8).

    Everything is granted by name for each region in `regions`. `wide_inbox` adds what workers of other makes
    need: `_INBOX.>`, the polling and reconnect subjects that name no version, the state of their stream, and
    the purge by which they end a session's record (`compatibility.wide_inbox`).
    """
    publish = [f"{INLINE_REPLY_PREFIX}.{version_id}.>", fallback_subject(version_id)]
    for region in regions:
        stream = request_stream(region, version_id)
        consumer = request_consumer(region, version_id)
        publish += [
            next_message_subject(stream, consumer),
            consumer_info_subject(stream, consumer),
            f"$JS.ACK.{stream}.>",
            f"stateful_session.lookup.{region}.{version_id}.>",
        ]
        if wide_inbox:
            # The state of a stream may list the subjects of all its messages, which is slow.
            publish.append(f"{API_PREFIX}.STREAM.INFO.{stream}")
            publish.append(f"{API_PREFIX}.STREAM.PURGE.{session_lookup_stream(region)}")
    subscribe = [
        cancel_subject(version_id),
        version_polling_subject(version_id, "*"),
        version_reconnect_subject(version_id, "*"),
        f"{worker_inbox_prefix(version_id, instance_id)}.>",
    ]
    if wide_inbox:
        subscribe += ["_INBOX.>", polling_subject("*"), reconnect_subject("*")]
    return Permissions(tuple(publish), tuple(subscribe))
