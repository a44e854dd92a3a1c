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
    """Stream that holds a version's queued requests in one region."""
    return f"rq_{region}_{version_id}"


def request_subject(region: str, version_id: str, request_id: str) -> str:
    """Subject of one queued request."""
    return f"rq.{region}.{version_id}.{request_id}"


def request_subjects(region: str, version_id: str) -> str:
    """All subjects of a request stream."""
    return f"rq.{region}.{version_id}.>"


def request_consumer(region: str, version_id: str) -> str:
    """Durable consumer that all workers of a version share."""
    return f"rq_{region}_{version_id}_workers"


def tracking_stream(region: str) -> str:
    """Stream that remembers which version a request id belongs to, once a 202 was answered."""
    return f"requestToFunctionVersion_{region}"


def tracking_subject(region: str, request_id: str) -> str:
    """Subject of one tracking record."""
    return f"requestToFunctionVersion.{region}.{request_id}"


def polling_subject(request_id: str) -> str:
    """Core subject on which the worker that holds a request answers polls."""
    return f"{POLLING_PREFIX}.{request_id}"


def version_polling_subject(version_id: str, request_id: str) -> str:
    """[ext] The same within the version's own space, which a worker may be granted by name."""
    return f"{POLLING_PREFIX}.{version_id}.{request_id}"


def rescue_subject(version_id: str) -> str:
    """[ext] Where a worker asks for another way back when the gateway of a request is gone."""
    return f"nvcf.attach.{version_id}"


def cancel_subject(version_id: str) -> str:
    """Core subject of cancel broadcasts to all workers of a version."""
    return f"{CANCEL_PREFIX}.{version_id}"


def reconnect_subject(request_id: str) -> str:
    """Subject that asks a worker to dial back for a stateful session."""
    return f"stateful_session.reconnect.{request_id}"


def version_reconnect_subject(version_id: str, request_id: str) -> str:
    """[ext] The same, in a space that only the version's own workers may listen in.

    The message carries a token that opens the caller's tunnel: on the contract's subject, which names no
    version, a permission could not keep it from other functions' workers.
    """
    return f"stateful_session.reconnect.{version_id}.{request_id}"


def session_lookup_stream(region: str) -> str:
    """Stream of stateful session records."""
    return f"stateful_session_lookup_{region}"


def session_lookup_subject(region: str, version_id: str, request_id: str) -> str:
    """Subject of one stateful session record."""
    return f"stateful_session.lookup.{region}.{version_id}.{request_id}"


def worker_connection_name(version_id: str, instance_id: str) -> str:
    """Name a worker gives its broker connection."""
    return f"worker_{version_id}_{instance_id}"


def worker_inbox_prefix(version_id: str, instance_id: str) -> str:
    """Inbox prefix of one worker: the only inboxes its connection may subscribe to."""
    return f"_INBOX.{version_id}.{instance_id}"


def inline_reply_subject(gateway_id: str, token: str) -> str:
    """[ext] Subject of one inline reply to the gateway replica that holds the caller."""
    return f"{INLINE_REPLY_PREFIX}.{gateway_id}.{token}"


def inline_reply_subjects(gateway_id: str) -> str:
    """[ext] All inline reply subjects of one gateway replica."""
    return f"{INLINE_REPLY_PREFIX}.{gateway_id}.*"


def rate_limit_take_subject(gateway_id: str) -> str:
    """[ext] Requests to the gateway replica that counts a version's calls: may these calls pass?"""
    return f"{RATE_LIMIT_PREFIX}.take.{gateway_id}"


RATE_LIMIT_JOIN_SUBJECT = f"{RATE_LIMIT_PREFIX}.join"
"""[ext] A gateway that starts asks here who else there is."""

RATE_LIMIT_MEMBERS_SUBJECT = f"{RATE_LIMIT_PREFIX}.members"
"""[ext] Signs of life of the gateways."""

RATE_LIMIT_COUNTS_SUBJECT = f"{RATE_LIMIT_PREFIX}.counts"
"""[ext] Counts that a gateway tells the others, who need them when it dies."""


FIGURES_SUBJECT = "nvcf.figures"
"""[ext] A gateway asks the others here what they have seen of some versions' calls lately."""


def next_message_subject(stream: str, consumer: str) -> str:
    """JetStream API subject of a pull request."""
    return f"{API_PREFIX}.CONSUMER.MSG.NEXT.{stream}.{consumer}"


def consumer_info_subject(stream: str, consumer: str) -> str:
    """JetStream API subject of a consumer's state and settings."""
    return f"{API_PREFIX}.CONSUMER.INFO.{stream}.{consumer}"


@dataclass(frozen=True)
class Permissions:
    """Subjects that a broker connection may publish to and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def worker_permissions(
    regions: Iterable[str], version_id: str, instance_id: str, *, wide_inbox: bool = False
) -> Permissions:
    """Least privileges of a worker's broker connection (protocol.md, section 8).

    Everything is granted by name for each region in `regions`. `wide_inbox` adds what workers of other makes
    need: `_INBOX.>`, the polling and reconnect subjects that name no version, and the purge by which they
    end a session's record (`compatibility.wide_inbox`).
    """
    publish = [f"{INLINE_REPLY_PREFIX}.>", rescue_subject(version_id)]
    for region in regions:
        stream = request_stream(region, version_id)
        consumer = request_consumer(region, version_id)
        publish += [
            next_message_subject(stream, consumer),
            consumer_info_subject(stream, consumer),
            f"{API_PREFIX}.STREAM.INFO.{stream}",
            f"$JS.ACK.{stream}.>",
            f"stateful_session.lookup.{region}.{version_id}.>",
        ]
        if wide_inbox:
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
