"""Pass requests on to the user's HTTP server, with streams in both directions."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from nvcf_proto import settings
from nvcf_proto.errors import ContractError
from nvcf_worker.errors import ServerUnreachable
from nvcf_worker.exchange.assets import HttpClient
from nvcf_worker.function.request import Request
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.run.sidecar import relay

log = logging.getLogger("nvcf_worker")

CONNECT_TIMEOUT = 5.0
IDLE_CONNECTION_SECONDS = 1.5
COLLECTED_BODY = 64 * 1024
MAX_HEADER_FIELD = 64 * 1024
RETRY_SECONDS = 0.5
"""Wait before a request is delivered again. By then a worker whose server is away takes none."""

_NO_AUTOMATIC_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class Upstream(HttpClient):
    """Client of one server at `http://host:port`.

    on_unreachable: called if the server cannot be reached or its connection breaks.
    """

    def __init__(self, host: str, port: int, on_unreachable: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._on_unreachable = on_unreachable

    def _open(self) -> aiohttp.ClientSession:
        traces = aiohttp.TraceConfig()
        traces.on_connection_reuseconn.append(_note_reuse)
        return aiohttp.ClientSession(
            # Idle connections are closed before common servers close them (2 to 5 s).
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION_SECONDS),
            timeout=aiohttp.ClientTimeout(total=settings.CALL_MAX_SECONDS, sock_connect=CONNECT_TIMEOUT),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_NO_AUTOMATIC_HEADERS,
            trace_configs=[traces],
            max_line_size=MAX_HEADER_FIELD,
            max_field_size=MAX_HEADER_FIELD,
        )

    async def handle(self, request: Request) -> Outcome:
        """Serve one request; this is the handler of a sidecar's worker.

        Raises BodyUnavailable, or ServerUnreachable if no response has begun: another attempt may succeed.
        """
        body = _Body(request)
        try:
            response = await self._send(request, body)
        except TimeoutError as error:
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            if connecting:
                raise self._unreachable(body, error) from error
            return relay.too_slow()
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:
            return relay.unusable(_words(error))
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(body, error) from error
        try:
            return await _outcome(response, request.method)
        except (ValueError, ContractError) as error:
            response.close()
            return relay.unusable(str(error))
        except (aiohttp.ClientError, OSError) as error:
            response.close()
            self._on_unreachable()
            return relay.unusable(f"the connection broke: {_words(error)}")
        except BaseException:
            response.close()
            raise

    async def _send(self, request: Request, body: _Body) -> aiohttp.ClientResponse:
        pairs = request.headers.pairs()
        has_body = body.streamed or bool(request._whole_body)
        headers = CIMultiDict(relay.request_headers(pairs, keep_length=body.streamed, has_body=has_body))
        target = request.target if request.target.startswith("/") else f"/{request.target}"
        url = URL(self._base + target, encoded=True)
        attempt = SimpleNamespace(reused=False)
        while True:
            try:
                return await self.session().request(
                    request.method,
                    url,
                    headers=headers,
                    data=body.data(),
                    allow_redirects=False,
                    trace_request_ctx=attempt,
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # The server closed an idle connection at this moment. Requests are delivered at least once in
                # any case, so this one may be sent again.
                if not attempt.reused or body.streamed:
                    raise
                attempt = SimpleNamespace(reused=False)

    def _unreachable(self, body: _Body, error: Exception) -> Exception:
        if body.error is not None:
            return body.error
        self._on_unreachable()
        reason = f"The function's server cannot be reached: {_words(error)}"
        return ServerUnreachable(reason, after=RETRY_SECONDS)


async def _note_reuse(
    _: aiohttp.ClientSession, context: SimpleNamespace, __: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.reused = True


class _Body:
    """The body of a request on its way to the server."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.streamed = request._whole_body is None
        self.error: Exception | None = None

    def data(self) -> bytes | AsyncIterator[bytes] | None:
        return self._stream() if self.streamed else self._request._whole_body or None

    async def _stream(self) -> AsyncIterator[bytes]:
        # aiohttp holds the head back until there is data to send with it; the server must not wait for that.
        yield b""
        try:
            async for chunk in self._request.stream():
                yield chunk
        except Exception as error:
            # aiohttp turns it into a connection error; the caller must get the original one.
            self.error = error
            raise


async def _outcome(response: aiohttp.ClientResponse, method: str) -> Outcome:
    pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers]
    length = response.content_length
    headers_of = functools.partial(relay.response_headers, response.status, method, pairs)
    if relay.has_no_body(response.status, method):
        headers = headers_of(complete=True)
        response.release()
        return Reply(response.status, headers, b"")
    if (length is not None and length <= COLLECTED_BODY) or response.content.is_eof():
        return Reply(response.status, headers_of(complete=True), await response.read())
    first = b""
    if response.status >= 400 and length is None:
        # Errors are collected, because compatibility mode turns them into problem documents.
        first = await _beginning(response.content)
        if response.content.at_eof():
            return Reply(response.status, headers_of(complete=True), first)
    return StreamReply(response.status, headers_of(complete=False), first, _Stream(response), length)


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    """Read about COLLECTED_BODY bytes: up to the end of the chunk that reaches this size."""
    found = bytearray()
    while len(found) < COLLECTED_BODY and (chunk := await content.readany()):
        found += chunk
    return bytes(found)


class _Stream:
    """The rest of a streamed response, read as fast as the caller reads it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __anext__(self) -> bytes:
        chunk = await self._response.content.readany()
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Close the connection of an unfinished response, so that the server sees its caller leave."""
        self._response.close()


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
