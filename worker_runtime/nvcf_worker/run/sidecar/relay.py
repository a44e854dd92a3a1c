"""What passes between the caller and the user's server, and what does not. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from nvcf_proto import h1
from nvcf_proto.headers import NVCF_FEATURE_DISABLE_COMPATIBILITY, strip_hop_by_hop
from nvcf_proto.problem import Problem, problem_for
from nvcf_proto.settings import MAX_RESPONSE_HEAD_BYTES, MAX_RESPONSE_HEADERS
from nvcf_worker.function.response import HeaderPairs, Reply, problem_reply

CONNECTION = "inference-connection"
SERVICE = "inference-service"

_BODILESS = frozenset((204, 304))


def request_headers(
    pairs: Iterable[tuple[str, str]], *, keep_length: bool, has_body: bool = False
) -> HeaderPairs:
    """Headers for the user's server.

    Hop-by-hop headers go, as does Expect (the gateway has answered it). The server is addressed by its own
    name, so the caller's Host becomes X-Forwarded-Host unless there is one. Content-Length stays only when
    the body is streamed under it. A body of exec or pexec that has no type is JSON; pass-through adds none.
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
    """Headers of a server's answer as they go to the gateway.

    Content-Length of a complete answer is set by whoever delivers it; of an answer to HEAD and of a stream
    it stays as the server said. Raises ValueError for what the contract does not carry
    (protocol.md, section 3.4).
    """
    drop_length = status in _BODILESS or (complete and method != "HEAD")
    kept = [
        (name, value)
        for name, value in strip_hop_by_hop(pairs)
        if not (drop_length and name.lower() == "content-length")
    ]
    # One place is left for the Content-Length that delivery adds.
    if len(kept) >= MAX_RESPONSE_HEADERS:
        raise ValueError(f"its answer has {len(kept)} headers; {MAX_RESPONSE_HEADERS - 1} can be passed on")
    if len(h1.encode_response_head(status, kept)) > MAX_RESPONSE_HEAD_BYTES - 64:
        raise ValueError(f"the headers of its answer exceed {MAX_RESPONSE_HEAD_BYTES} bytes")
    return kept


def has_no_body(status: int, method: str) -> bool:
    """Whether an answer ends with its head, whatever its headers say (RFC 9112 section 6.3)."""
    return method == "HEAD" or status in _BODILESS


def unreachable(reason: str) -> Reply:
    """The server could not be reached, or the connection broke before it answered."""
    return problem_reply(
        problem_for(502, f"The function's server cannot be reached: {reason}", source=CONNECTION)
    )


def unusable(reason: str) -> Reply:
    """The server answered something that is no answer."""
    return problem_reply(
        Problem("Bad Gateway", 502, f"The function's server gave no usable answer: {reason}", SERVICE)
    )


def too_slow() -> Reply:
    """The server did not answer within the longest call there is."""
    return problem_reply(problem_for(504, "The function's server did not answer in time", source=SERVICE))
