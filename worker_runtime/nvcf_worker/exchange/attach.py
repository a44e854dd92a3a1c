"""HTTP client of `request-attach` (protocol.md, section 3): fetch request bodies, send responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import payload
from aiohttp.abc import AbstractStreamWriter

from nvcf_proto import settings
from nvcf_proto.headers import OCTET_STREAM, OCTET_STREAM_H1
from nvcf_worker.control.tls import client_context
from nvcf_worker.errors import BodyUnavailable, GatewayGone
from nvcf_worker.exchange.assets import HttpClient
from nvcf_worker.message import AttachTarget

CONNECT_TIMEOUT = 5.0
IDLE_CONNECTION_SECONDS = 10.0
GET_ATTEMPTS = 3
# Well below ATTACH_HEAD_TIMEOUT, which cannot tell a slow gateway from one that is not there.
GET_TIMEOUT = aiohttp.ClientTimeout(total=settings.CALL_MAX_SECONDS, sock_connect=CONNECT_TIMEOUT / 2)
DELIVERY_ATTEMPT = "Nvcf-Delivery-Attempt"
"""[ext] Header of the GET: how often the queue has delivered the request."""


class AttachClient(HttpClient):
    """One connection pool for a worker."""

    def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # Idle connections are closed well before a server would do it: a POST on a closed connection
            # cannot always be repeated.
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=IDLE_CONNECTION_SECONDS, ssl=client_context()
            ),
            timeout=aiohttp.ClientTimeout(total=settings.CALL_MAX_SECONDS, sock_connect=CONNECT_TIMEOUT),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )

    async def fetch(self, target: AttachTarget, *, whole_request: bool, attempt: int) -> HttpDownload:
        """Open the GET of the rest of the body, or with `whole_request` of the request as `+h1`.

        attempt: how often the queue has delivered the request; the token is valid once for each ([ext]).
        Raises BodyUnavailable when no good response head has come within ATTACH_HEAD_TIMEOUT (5 s),
        GatewayGone when there is no connection.
        """
        accept = OCTET_STREAM_H1 if whole_request else OCTET_STREAM
        headers = {
            "Authorization": f"Bearer {target.request_token}",
            "Accept": accept,
            "Accept-Encoding": "identity",
            DELIVERY_ATTEMPT: str(attempt),
        }
        try:
            async with asyncio.timeout(settings.ATTACH_HEAD_TIMEOUT):
                response = await self._get(target, headers)
        except aiohttp.ConnectionTimeoutError as error:
            # Its machine or the network is down. Unlike with a slow gateway, another may have the body.
            raise GatewayGone("the gateway could not be reached for the request body") from error
        except TimeoutError as error:
            raise BodyUnavailable("the gateway did not hand out the request body in time") from error
        except aiohttp.ClientError as error:
            raise GatewayGone("the gateway could not be reached for the request body") from error
        if response.status != 200:
            response.close()
            refusal = BodyUnavailable(f"the gateway refused the request body with {response.status}")
            refusal.unknown_token = response.status == 401
            raise refusal
        return HttpDownload(response)

    async def _get(self, target: AttachTarget, headers: dict[str, str]) -> aiohttp.ClientResponse:
        for attempt in range(GET_ATTEMPTS):
            try:
                return await self.session().get(
                    target.url, headers=headers, proxy=target.proxy, timeout=GET_TIMEOUT
                )
            except (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError):
                if attempt == GET_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    async def post(self, target: AttachTarget, upload: Upload) -> int:
        """Send one POST with `upload` as its body; return the status. Raises aiohttp.ClientError."""
        headers = {"Authorization": f"Bearer {target.response_token}", "Content-Type": OCTET_STREAM_H1}
        async with self.session().post(
            target.url, data=upload, headers=headers, proxy=target.proxy
        ) as response:
            return response.status


class HttpDownload:
    """The body of a GET."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise BodyUnavailable("the request body broke off") from error

    def close(self) -> None:
        """Close the connection."""
        self._response.close()


class Aborted(Exception):
    """Breaks the connection, so that an incomplete body does not look complete."""


class Upload(payload.Payload):
    """A request body that its producer writes, instead of aiohttp pulling it.

    aiohttp runs `write_with_length` in a task of its own; a handler's generator must be iterated by the
    request's task (cancel scopes and context variables belong to it), so this only lends the writer.
    """

    def __init__(self, size: int | None) -> None:
        super().__init__(None, content_type=OCTET_STREAM_H1)
        self._size = size
        # Not to be read from `_written`: aiohttp cancels that when the exchange breaks.
        self.ended = False
        loop = asyncio.get_running_loop()
        self._writer: asyncio.Future[AbstractStreamWriter | None] = loop.create_future()
        self._written: asyncio.Future[None] = loop.create_future()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Raise TypeError: the body is not kept."""
        raise TypeError("an upload cannot be decoded")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Lend the writer until the body is complete."""
        if not self._writer.done():
            self._writer.set_result(writer)
        await self._written

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Lend the writer until the body is complete."""
        await self.write(writer)

    async def writer(self) -> AbstractStreamWriter | None:
        """Wait for the writer; return None when the HTTP exchange ended before there was a connection."""
        return await self._writer

    @property
    def lent(self) -> bool:
        """Return whether the writer was lent, so that a part of the body may have been sent."""
        return self._writer.done() and not self._writer.cancelled() and self._writer.result() is not None

    def finish(self) -> None:
        """End the body: it is complete."""
        self.ended = True
        if not self._written.done():
            self._written.set_result(None)

    def abort(self) -> None:
        """End the body although it is incomplete; no effect after `finish`."""
        self.ended = True
        if not self._written.done():
            self._written.set_exception(Aborted())
            # Nobody awaits it if the exchange ended before.
            self._written.exception()

    def exchange_ended(self) -> None:
        """Stop waiting for the writer: there will be none."""
        if not self._writer.done():
            self._writer.set_result(None)
