"""Headers and errors between the caller and the user's server. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from nvcf_proto.headers import NVCF_FEATURE_DISABLE_COMPATIBILITY, strip_hop_by_hop
from nvcf_proto.problem import Problem, problem_for
from nvcf_worker.function.response import HeaderPairs, Reply, check_head, problem_reply

SERVICE = "inference-service"

_BODILESS = frozenset((204, 304))


def request_headers(
    pairs: Iterable[tuple[str, str]], *, keep_length: bool, has_body: bool = False
) -> HeaderPairs:
    """Return the request headers for the user's server.

    Hop-by-hop headers are removed, and so is Expect, to which the gateway has responded. The server gets its
    own name as Host, and the caller's as X-Forwarded-Host unless there is one. Content-Length is kept only
    for a streamed body. A body of exec or pexec without a Content-Type is JSON; pass-through adds none.
    """
    kept: HeaderPairs = []
    host, forwarded, typed = "", False, not has_body
    for name, value in strip_hop_by_hop(pairs):
        lowered = name.lower()
        if lowered == "host":
            host = value
        elif lowered != "expect" and (keep_length or lowered != "content-length"):
            kept.append((name, value))
            forwarded = forwarded or lowered == "x-forwarded-host"
            typed = typed or lowered in ("content-type", NVCF_FEATURE_DISABLE_COMPATIBILITY)
    if not typed:
        kept.append(("Content-Type", "application/json"))
    if host and not forwarded:
        kept.append(("X-Forwarded-Host", host))
    return kept


def response_headers(
    status: int, method: str, pairs: Iterable[tuple[str, str]], *, complete: bool
) -> HeaderPairs:
    """Return the response headers for the gateway.

    The Content-Length of a complete response is removed, because delivery sets it; for HEAD and for streams
    the server's value is kept. Raises ValueError if there are more headers than the contract allows
    (protocol.md, section 3.3).
    """
    drop_length = status in _BODILESS or (complete and method != "HEAD")
    kept = [
        (name, value)
        for name, value in strip_hop_by_hop(pairs)
        if not (drop_length and name.lower() == "content-length")
    ]
    check_head(status, kept)
    return kept


def has_no_body(status: int, method: str) -> bool:
    """Whether a response has no body, whatever its headers say (RFC 9112 section 6.3)."""
    return method == "HEAD" or status in _BODILESS


def unusable(reason: str) -> Reply:
    """Return the response for a server whose own response is not valid HTTP or too large to pass on."""
    detail = f"The function's server sent no usable response: {reason}"
    return problem_reply(Problem("Bad Gateway", 502, detail, SERVICE))


def too_slow() -> Reply:
    """Return the response for a server that did not respond within the maximum time of a call."""
    return problem_reply(problem_for(504, "The function's server did not respond in time", source=SERVICE))
