"""Open a tunnel to a gateway: HTTP/1.1 CONNECT, then raw bytes (protocol.md, section 7.3)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

from nvcf_broker.wire import Wire
from nvcf_proto import settings
from nvcf_proto.errors import H1Error
from nvcf_proto.h1 import ResponseDecoder, ResponseHead, encode_request_head
from nvcf_proto.headers import TUNNEL_ERROR
from nvcf_worker.control.tls import client_context
from nvcf_worker.errors import TunnelError
from nvcf_worker.message import TunnelTarget
from nvcf_worker.process.durations import Backoff

CONNECT_SECONDS = 5.0
HEAD_SECONDS = 10.0
_MAX_HEAD = 16 * 1024
_FORBIDDEN = 403
_BACKOFF = Backoff(first=settings.TUNNEL_DIAL_FIRST_DELAY, limit=5.0)


@dataclass(frozen=True)
class ProxyAddress:
    """A parsed proxyURI."""

    host: str
    port: int
    path: str
    authority: str
    tls: bool


def proxy_address(url: str) -> ProxyAddress:
    """Parse a proxyURI. Defaults: port 80 (443 for https), path /v1/proxy. Raises TunnelError."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise TunnelError(f"proxyURI is {url[:128]!r}: {error}", final=True) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TunnelError(f"proxyURI is not an http(s) URL: {url[:128]!r}", final=True)
    tls = parts.scheme == "https"
    path = parts.path if parts.path not in ("", "/") else settings.TUNNEL_PATH
    if parts.query:
        path += f"?{parts.query}"
    return ProxyAddress(
        parts.hostname, port or (443 if tls else 80), path, parts.netloc.rpartition("@")[2], tls
    )


async def dial(target: TunnelTarget, request_id: str, refusal: str | None = None) -> Wire:
    """Open a tunnel to the gateway, with retries.

    refusal: [ext] `STATUS TEXT`, sent to the gateway if this worker cannot serve the session. Raises
    TunnelError if the gateway refuses the tunnel (403) or cannot be reached.
    """
    address = proxy_address(target.url)
    attempt = 0
    while True:
        try:
            return await _dial_once(address, target.token, request_id, refusal)
        except TunnelError as error:
            if error.final or attempt >= settings.TUNNEL_DIAL_ATTEMPTS:
                raise
        await asyncio.sleep(_BACKOFF.delay(attempt, 0.0))
        attempt += 1


async def _dial_once(address: ProxyAddress, token: str, request_id: str, refusal: str | None) -> Wire:
    wire = await _connect(address)
    try:
        headers = [
            ("Host", address.authority),
            ("Authorization", f"Bearer {token}"),
            ("X-Request-ID", request_id),
        ]
        if refusal is not None:
            headers.append((TUNNEL_ERROR, refusal))
        wire.write(encode_request_head("CONNECT", address.path, headers))
        async with asyncio.timeout(HEAD_SECONDS):
            head = await _read_head(wire)
    except BaseException as error:
        wire.abort()
        if isinstance(error, TimeoutError | H1Error):
            raise TunnelError(f"no usable response to CONNECT: {error or 'time-out'}") from error
        raise
    if head.status != 200:
        wire.abort()
        raise TunnelError(f"the gateway responded {head.status} to CONNECT", final=head.status == _FORBIDDEN)
    return wire


async def _connect(address: ProxyAddress) -> Wire:
    context = client_context() if address.tls else None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, wire = await asyncio.get_running_loop().create_connection(
                Wire, address.host, address.port, ssl=context
            )
    except (OSError, TimeoutError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or "time-out"
        raise TunnelError(f"cannot reach the gateway at {address.authority}: {reason}") from error
    return wire


async def _read_head(wire: Wire) -> ResponseHead:
    decoder = ResponseDecoder(max_head_bytes=_MAX_HEAD)
    while True:
        try:
            data = await wire.read()
        except ConnectionError:
            data = b""
        if not data:
            raise TunnelError("the gateway closed the connection")
        parts = decoder.feed(data)
        if parts:
            head = parts[0]
            # The caller of the function may have sent data already.
            wire.unread(b"".join(part for part in parts[1:] if isinstance(part, bytes)))
            if isinstance(head, ResponseHead):
                return head
