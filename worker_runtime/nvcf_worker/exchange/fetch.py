"""Downloading what the queue message leaves out: the rest of a body, or the whole request."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator

from nvcf_proto.errors import ContractError
from nvcf_proto.h1 import RequestDecoder, RequestHead
from nvcf_proto.headers import field_text
from nvcf_worker.errors import BodyUnavailable, GatewayGone, RequestCancelled
from nvcf_worker.exchange.exchange import Exchange
from nvcf_worker.exchange.response_delivery import RETRY
from nvcf_worker.exchange.transport import NoGateway
from nvcf_worker.exchange.waiters import FALLBACK_SECONDS
from nvcf_worker.function.body import Download, RequestBody
from nvcf_worker.function.cancellation import End
from nvcf_worker.message import ReplyAddress

log = logging.getLogger("nvcf_worker")

MAX_HEAD_BYTES = 1024 * 1024
MAX_HEADERS = 1000
"""Of a caller's request. Its gateway has limits of its own, which the worker does not know."""


async def fetch_body(exchange: Exchange, *, whole_request: bool) -> Download:
    """Open the download, from a fallback gateway when the request's own is gone.

    The fallback gateway gets the response, too. Raises BodyUnavailable; stops the request and raises
    RequestCancelled when it cannot go on.
    """
    started = time.monotonic()
    work, transport = exchange.work, exchange.transport
    for attempt in itertools.count():
        refusal: BodyUnavailable | None = None
        try:
            return await transport.fetch(
                exchange.address.target, whole_request=whole_request, attempt=work.attempt
            )
        except GatewayGone as error:
            log.warning("%s", error)
        except BodyUnavailable as error:
            if not error.unknown_token:
                raise
            refusal = error
        found = await transport.find_gateway(work.request_id)
        over = attempt > 0 and time.monotonic() - started > FALLBACK_SECONDS
        if isinstance(found, ReplyAddress) and not over:
            exchange.use(found)
            if found.target.request_token is None:
                raise BodyUnavailable("the gateway that had the body is gone, and so is the body")
        elif refusal is not None and not work.has_fallback:
            raise refusal
        elif found is NoGateway.NOT_WANTED or over:
            end = End.NOT_WANTED if found is NoGateway.NOT_WANTED else End.UNREACHABLE
            exchange.scope.stop(end)
            raise RequestCancelled(end.value)
        if attempt or not isinstance(found, ReplyAddress):
            await asyncio.sleep(RETRY.delay(attempt, random.random()))  # noqa: S311 - jitter
    raise AssertionError("unreachable")


async def fetch_request(exchange: Exchange) -> tuple[RequestHead, RequestBody]:
    """Fetch a request's head, and as much of its body as comes with it (protocol.md, section 3, `+h1`).

    Headers of the message come first: by them the gateway tells the worker e.g. of pass-through, and it
    leaves them out of the caller's request. Raises BodyUnavailable.
    """
    work = exchange.work
    if work.reply_address.target.request_token is None:
        raise BodyUnavailable("the message has neither a request nor a token to fetch it")
    download = await fetch_body(exchange, whole_request=True)
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

    headers = [(pair.key, pair.value) for pair in work.message.requestHeaders]
    headers += [(name, field_text(value)) for name, value in head.headers]
    return RequestHead(head.method, head.target, headers), RequestBody(rest, opened, continued)


class _Continued:
    """A download whose beginning has been read."""

    def __init__(self, download: Download, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.close = download.close

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks
