"""Requests that the message leaves out altogether (protocol.md section 3, GET with `+h1`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from nvcf_proto.errors import ContractError
from nvcf_proto.h1 import RequestDecoder, RequestHead
from nvcf_worker.errors import BodyUnavailable
from nvcf_worker.exchange.attach import HttpDownload
from nvcf_worker.exchange.exchange import Conversation
from nvcf_worker.exchange.fetch_body import fetch_body
from nvcf_worker.exchange.transports import Channels
from nvcf_worker.function.body import Download, RequestBody
from nvcf_worker.queue.delivery import ActiveRequest

MAX_HEAD_BYTES = 1024 * 1024
MAX_HEADERS = 1000
"""Of a caller's request; its gateway has set limits of its own, which may be any."""


async def whole_request(
    active: ActiveRequest, channels: Channels, conversation: Conversation
) -> tuple[RequestHead, RequestBody]:
    """Fetch the request's head, and its body as far as it came with it. Raises BodyUnavailable.

    Headers that the message does name come first: a gateway speaks to the worker by them, e.g. of
    pass-through, and leaves them out of the caller's request.
    """
    if active.work.target.request_token is None:
        raise BodyUnavailable("the message has neither a request nor a token to fetch it")
    download = await fetch_body(active, channels, conversation, whole_request=True)
    chunks = aiter(download)
    decoder = RequestDecoder(MAX_HEAD_BYTES, MAX_HEADERS)
    try:
        async for chunk in chunks:
            parts = decoder.feed(chunk)
            if parts:
                break
        else:
            decoder.close()
            raise BodyUnavailable("the request broke off")
    except BaseException as error:
        download.close()
        if isinstance(error, ContractError):
            raise BodyUnavailable(f"the gateway sent a malformed request: {error}") from error
        raise
    head = parts[0]
    if not isinstance(head, RequestHead):
        raise BodyUnavailable("the gateway sent no request head")
    rest = b"".join(part for part in parts[1:] if isinstance(part, bytes))

    continued = _Continued(download, chunks)

    async def opened() -> Download:
        return continued

    headers = [(pair.key, pair.value) for pair in active.work.message.requestHeaders]
    headers += [(name, header_text(value)) for name, value in head.headers]
    return RequestHead(head.method, head.target, headers), RequestBody(rest, opened, continued)


def header_text(value: str) -> str:
    """A value as the messages of the queue would carry it, which is UTF-8; `value` has a character a byte."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


class _Continued:
    """A download whose beginning has been read."""

    def __init__(self, download: HttpDownload, chunks: AsyncIterator[bytes]) -> None:
        self._download = download
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._download.close()
