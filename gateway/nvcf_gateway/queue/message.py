"""The message in the queue, built from a caller's request (protocol.md, section 1.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from nvcf_proto import headers as names
from nvcf_proto.headers import folded, strip_hop_by_hop
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.settings import MAX_DIRECT_RESPONSE

Header = tuple[str, str]

# Credentials, what the gateway answers itself, and what the gateway or the worker sets.
_GATEWAY_ONLY = names.WORKER_SET | {
    "authorization",
    "expect",
    names.NVCF_INVOCATION_REGION.lower(),
    names.NVCF_POLL_SECONDS.lower(),
}
_TRACE_HEADERS = ("traceparent", "tracestate", "baggage")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True)
class AssetReference:
    """An input asset and where the worker fetches it."""

    asset_id: str
    url: str
    content_type: str


@dataclass(frozen=True)
class Work:
    """The request to the function, and its caller. `requested_at` is Unix time in nanoseconds."""

    request_id: str
    nca_id: str
    subject: str
    method: str
    path: str
    headers: list[Header]
    requested_at: int
    large_response_url: str = ""
    assets: tuple[AssetReference, ...] = ()


@dataclass(frozen=True)
class Delivery:
    """The reply address of a request: where to attach, with which tokens."""

    target_uri: str
    response_token: str
    request_token: str | None


def header_texts(raw: Sequence[tuple[bytes, bytes]]) -> list[Header]:
    """Decode header bytes, each as UTF-8 or else as latin-1, so that nothing is refused."""
    try:
        # All at once: no header has a line feed.
        texts = b"\n".join(chain.from_iterable(raw)).decode().split("\n")
        if len(texts) == 2 * len(raw):
            return list(zip(texts[::2], texts[1::2], strict=True))
    except UnicodeDecodeError:
        pass
    return [(_header_text(name), _header_text(value)) for name, value in raw]


def _header_text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def forwarded_headers(
    headers: Iterable[Header], poll_seconds: int, region: str, *, pass_through: bool
) -> list[Header]:
    """Return the headers for the worker: the caller's, and always poll time and region."""
    kept = [pair for pair in strip_hop_by_hop(headers) if folded(pair[0]) not in _GATEWAY_ONLY]
    kept.append((names.NVCF_POLL_SECONDS, str(poll_seconds)))
    kept.append((names.NVCF_INVOCATION_REGION, region))
    if pass_through:
        kept.append((names.NVCF_FEATURE_DISABLE_COMPATIBILITY, "true"))
    return kept


def build_request(work: Work, delivery: Delivery, body: bytes, *, full_by_attach: bool) -> bytes:
    """Encode the WorkerInvokeFunctionRequest.

    With `full_by_attach` method, path, headers and body stay out: the worker fetches all by GET attach.
    """
    # Dictionaries: a call for each header and each nested message would take longer than all the rest.
    seconds, nanos = divmod(work.requested_at, 1_000_000_000)
    connection = {"targetURI": delivery.target_uri, "responseAuthorizationToken": delivery.response_token}
    if delivery.request_token is not None:
        connection["requestAuthorizationToken"] = delivery.request_token
    fields: dict[str, Any] = {
        "requestId": work.request_id,
        "ncaId": work.nca_id,
        "subject": work.subject,
        "maxDirectResponseSizeBytes": MAX_DIRECT_RESPONSE,
        "largeResponseUrl": work.large_response_url,
        "requestTime": {"seconds": seconds, "nanos": nanos},
        "statelessConfig": {"connectionConfigs": [{"http1Config": connection}]},
        "inputAssetReference": [
            {"assetId": asset.asset_id, "reference": asset.url, "contentType": asset.content_type}
            for asset in work.assets
        ],
    }
    if not full_by_attach:
        fields["requestMethod"] = work.method
        fields["requestPath"] = work.path
        fields["requestHeaders"] = [{"key": name, "value": value} for name, value in work.headers]
        if body:
            fields["requestBody"] = body
    return nvcf_pb2.WorkerInvokeFunctionRequest(**fields).SerializeToString()


def message_headers(
    caller: Mapping[str, str], reply_subject: str | None, reply_max_bytes: int, *, kept: bool | None = None
) -> dict[str, str]:
    """Return the NATS headers of the message: trace context; of a call the inline reply and `kept` [ext].

    Without a trace of the caller or the gateway there is none: the worker decides whether to begin one.
    """
    found: dict[str, str] = {}
    if _TRACEPARENT.fullmatch(caller.get("traceparent", "")):
        found = {name: caller[name] for name in _TRACE_HEADERS if name in caller and caller[name].isascii()}
    if reply_subject is not None:
        found[names.REPLY_SUBJECT] = reply_subject
        found[names.REPLY_MAX_BYTES] = str(reply_max_bytes)
    # The reply subject alone tells a worker that gateways answer its lookups.
    if kept or (kept is not None and reply_subject is None):
        found[names.KEPT] = "true" if kept else "false"
    return found
