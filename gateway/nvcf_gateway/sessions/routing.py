"""Headers of a session's call: where it goes, and what the function receives (protocol.md, section 7.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from multidict import CIMultiDict

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.routing import Target, pass_through_target
from nvcf_proto.errors import InvalidId
from nvcf_proto.headers import FUNCTION_ID, FUNCTION_VERSION_ID, NVCF_REQID, WORKER_SET, folded
from nvcf_proto.ids import parse_id

REQUEST_ID = "nvcf-request-id"
"""Header, `Sec-WebSocket-Protocol` entry and cookie by which a caller returns to its session."""

_PROTOCOLS = "sec-websocket-protocol"
_BEARER = re.compile(r"bearer(?: |%20|\.)", re.IGNORECASE)
_ROUTING = frozenset(("authorization", FUNCTION_ID, FUNCTION_VERSION_ID, REQUEST_ID, NVCF_REQID.lower()))

Header = tuple[str, str]
RawHeader = tuple[bytes, bytes]


@dataclass(frozen=True)
class SessionCall:
    """One call: where it goes, and its headers for the function.

    `request_id` names the session to return to. `insists` means that a new session is no substitute: the id
    came from a header, not from a cookie, which a browser sends in any case. `accepted` is the
    `Sec-WebSocket-Protocol` entry to respond with when the function selects none: a browser that offered
    entries accepts no response without one.
    """

    target: Target
    authorization: CIMultiDict[str]
    headers: list[Header]
    request_id: str | None = None
    insists: bool = False
    accepted: str | None = None


@dataclass
class _Protocols:
    """A parsed `Sec-WebSocket-Protocol` header: routing values by name, and the entries for the function."""

    values: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    public: str | None = None


def read_call(headers: Iterable[Header], host: str) -> SessionCall:
    """Parse the headers of one call. Raises HttpProblem 400 without a function or with a malformed id."""
    pairs = list(headers)
    protocols = _protocols(value for name, value in pairs if name.lower() == _PROTOCOLS)
    found: CIMultiDict[str] = CIMultiDict(protocols.values)
    for name, value in pairs:
        if name.lower() in _ROUTING:
            found[name] = value.strip()
    _check_ids(found)
    target = pass_through_target(found, host)
    if target is None:
        raise HttpProblem(400, f"header {FUNCTION_ID} is missing: it names the function to call")
    request_id, insists = _session_id(found, pairs)
    return SessionCall(
        target=target,
        authorization=CIMultiDict(
            (name, value) for name, value in found.items() if name.lower() == "authorization"
        ),
        headers=list(_passed_on(pairs, protocols)),
        request_id=request_id,
        insists=insists,
        accepted=None if protocols.kept else protocols.public,
    )


def _check_ids(found: CIMultiDict[str]) -> None:
    # On a session these headers can mean nothing else. Some clients send an empty one for "not given".
    for name in (FUNCTION_ID, FUNCTION_VERSION_ID):
        try:
            if found.get(name):
                parse_id(found[name], f"header {name}")
        except InvalidId as error:
            raise HttpProblem(400, str(error)) from None


def _protocols(values: Iterable[str]) -> _Protocols:
    result = _Protocols()
    for entry in (part.strip() for value in values for part in value.split(",")):
        name, dot, value = entry.partition(".")
        lowered = name.lower()
        if not dot or lowered not in _ROUTING:
            if entry:
                result.kept.append(entry)
            continue
        if lowered == "authorization":
            # An entry is a token, so it cannot contain the blank after "Bearer".
            value = f"Bearer {_BEARER.sub('', value, count=1)}"
        else:
            result.public = result.public or entry
        result.values.setdefault(lowered, value)
    return result


def _passed_on(pairs: list[Header], protocols: _Protocols) -> Iterable[Header]:
    first = True
    for name, value in pairs:
        lowered = name.lower()
        # Routing and credentials are for the gateway; what the function may trust, only the platform sets.
        if lowered in _ROUTING or folded(name) in WORKER_SET:
            continue
        if lowered != _PROTOCOLS:
            yield name, value
        elif first and protocols.kept:
            first = False
            yield name, ", ".join(protocols.kept)


def _session_id(found: CIMultiDict[str], pairs: list[Header]) -> tuple[str | None, bool]:
    for name in (REQUEST_ID, NVCF_REQID):
        value = found.get(name)
        if value:
            try:
                return parse_id(value, f"header {name}"), True
            except InvalidId as error:
                raise HttpProblem(400, str(error)) from None
    return _cookie(pairs), False


def _cookie(pairs: list[Header]) -> str | None:
    for name, value in pairs:
        if name.lower() != "cookie":
            continue
        for part in value.split(";"):
            key, _, text = part.strip().partition("=")
            if key == REQUEST_ID:
                try:
                    return parse_id(text.strip('"'), REQUEST_ID)
                except InvalidId:
                    # A browser sends cookies by itself: ignore a broken one.
                    return None
    return None


def response_additions(request_id: str, *, secure: bool) -> list[Header]:
    """Return the headers added to every response of a session; `secure`: this gateway serves TLS."""
    flags = "Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")
    return [
        (NVCF_REQID.lower(), request_id),
        ("set-cookie", f"{REQUEST_ID}={request_id}; {flags}"),
    ]


def encode_headers(headers: Iterable[Header]) -> list[RawHeader]:
    """Return headers as the bytes that came in; h11 by itself accepts only ASCII text."""
    return [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers
    ]
