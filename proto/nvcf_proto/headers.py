"""HTTP and NATS header names and media types of the contract (protocol.md, sections 2 to 5 and 7)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

_FOLD = {ord(sign): "-" for sign in "!#$%&'*+.^_`|~"}

# Answered to callers (protocol.md, section 4.4).
NVCF_REQID = "NVCF-REQID"
NVCF_STATUS = "NVCF-STATUS"
NVCF_PERCENT_COMPLETE = "NVCF-PERCENT-COMPLETE"

# Sent by callers (protocol.md, section 4.4).
NVCF_POLL_SECONDS = "NVCF-POLL-SECONDS"
NVCF_INPUT_ASSET_REFERENCES = "NVCF-INPUT-ASSET-REFERENCES"
NVCF_KEEP_QUEUED = "NVCF-KEEP-QUEUED"
NVCF_MAX_EXECUTION_SECONDS = "NVCF-MAX-EXECUTION-SECONDS"
NVCF_FEATURE_STREAM_FULL_REQUEST = "nvcf-feature-enable-only-stream-full-request"
NVCF_FEATURE_DISABLE_COMPATIBILITY = "nvcf-feature-disable-worker-compatibility"
FUNCTION_ID = "function-id"
FUNCTION_VERSION_ID = "function-version-id"

# Set by the worker for the function (protocol.md, section 5.4); never taken from a caller.
NVCF_SUB = "NVCF-SUB"
NVCF_NCAID = "NVCF-NCAID"
NVCF_FUNCTION_NAME = "NVCF-FUNCTION-NAME"
NVCF_FUNCTION_ID = "NVCF-FUNCTION-ID"
NVCF_FUNCTION_VERSION_ID = "NVCF-FUNCTION-VERSION-ID"
NVCF_ASSET_DIR = "NVCF-ASSET-DIR"
NVCF_LARGE_OUTPUT_DIR = "NVCF-LARGE-OUTPUT-DIR"
NVCF_MAX_RESPONSE_SIZE_BYTES = "NVCF-MAX-RESPONSE-SIZE-BYTES"
NVCF_NSPECTID = "NVCF-NSPECTID"
NVCF_BACKEND = "NVCF-BACKEND"
NVCF_INSTANCETYPE = "NVCF-INSTANCETYPE"
NVCF_REGION = "NVCF-REGION"
NVCF_ENV = "NVCF-ENV"
NVCF_FUNCTION_ASSET_IDS = "NVCF-FUNCTION-ASSET-IDS"
NVCF_INVOCATION_REGION = "NVCF-INVOCATION-REGION"

WORKER_SET: frozenset[str] = frozenset(
    name.lower()
    for name in (
        NVCF_REQID,
        NVCF_SUB,
        NVCF_NCAID,
        NVCF_FUNCTION_NAME,
        NVCF_FUNCTION_ID,
        NVCF_FUNCTION_VERSION_ID,
        NVCF_ASSET_DIR,
        NVCF_LARGE_OUTPUT_DIR,
        NVCF_MAX_RESPONSE_SIZE_BYTES,
        NVCF_NSPECTID,
        NVCF_BACKEND,
        NVCF_INSTANCETYPE,
        NVCF_REGION,
        NVCF_ENV,
        NVCF_FUNCTION_ASSET_IDS,
    )
)
"""Folded names that only the worker may set on what the function sees."""

# NATS headers of the inline reply [ext] (protocol.md, section 2.10).
REPLY_SUBJECT = "Nvcf-Reply-Subject"
REPLY_MAX_BYTES = "Nvcf-Reply-Max-Bytes"
REPLY_STATUS = "Nvcf-Reply-Status"

# NATS header of a queued request [ext] (protocol.md, section 2.11): `true` if its response is kept for a
# caller that comes back, else `false`. A gateway that sends it answers fallback lookups.
KEPT = "Nvcf-Kept"

# NATS headers of a request that was queued again [ext] (protocol.md, section 2.12): how many of its earlier
# deliveries were started, and how many there were.
ATTEMPTS = "Nvcf-Attempts"
DELIVERIES = "Nvcf-Deliveries"

# Stateful sessions [ext] (protocol.md, section 7): on the queued request, where the worker listens for
# reconnects; on the worker's CONNECT, why it cannot serve the session (`STATUS TEXT`).
RECONNECT_SUBJECT = "Nvcf-Reconnect-Subject"
TUNNEL_ERROR = "Nvcf-Tunnel-Error"

OCTET_STREAM = "application/octet-stream"
OCTET_STREAM_H1 = "application/octet-stream+h1"
PROBLEM_JSON = "application/problem+json"
EVENT_STREAM = "text/event-stream"

HOP_BY_HOP: frozenset[str] = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Lower-case names of RFC 9110 section 7.6.1 and their historic companions."""


# The same names come with every request.
@functools.lru_cache(maxsize=512)
def folded(name: str) -> str:
    """Return a name as servers fold it that hand headers on as variables: `NVCF_Sub` is `nvcf-sub`.

    WSGI and CGI cannot tell such names apart, so a reserved name is reserved in all its forms.
    """
    return name.lower().translate(_FOLD)


def of_this_platform(nats_headers: Mapping[str, str]) -> bool:
    """Return whether a gateway of this platform queued a request, and so answers fallback lookups for it."""
    return KEPT in nats_headers or REPLY_SUBJECT in nats_headers


def field_text(value: str) -> str:
    """Return a header value that has a character a byte as text: UTF-8, or else as it is."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def field_bytes(text: str) -> str:
    """Return the text of a header value as UTF-8 with a character a byte, the form of `nvcf_proto.h1`.

    Raises UnicodeEncodeError for half a surrogate pair.
    """
    return text if text.isascii() else text.encode().decode("latin-1")


def strip_hop_by_hop(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Drop hop-by-hop headers, those that a `Connection` header names included."""
    kept = list(pairs)
    named = {
        token.strip().lower()
        for name, value in kept
        if folded(name) == "connection"
        for token in value.split(",")
    }
    dropped = HOP_BY_HOP | named if named else HOP_BY_HOP
    return [(name, value) for name, value in kept if folded(name) not in dropped]
