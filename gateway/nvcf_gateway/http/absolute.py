"""Request targets in absolute form (`GET http://host/path`), which servers must take as origin form."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from nvcf_gateway.http.listener import Connection


def make_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
    *,
    closing: Callable[[], bool] = lambda: False,
) -> web.BaseRequest:
    """Return the request of a parsed message. While `closing`, its connection ends with the response."""
    if not message.path.startswith("/"):
        message = in_origin_form(message)
    if closing():
        message = message._replace(should_close=True)
    request = web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())
    if isinstance(protocol, Connection):
        protocol.latest = weakref.ref(request)
    return request


def in_origin_form(message: RawRequestMessage) -> RawRequestMessage:
    """Return the message with path and query as its target, and the host of an absolute URL as its Host."""
    scheme, separator, rest = message.path.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        return message
    cut = next((at for at, character in enumerate(rest) if character in "/?"), len(rest))
    authority, target = rest[:cut], rest[cut:]
    target = target if target.startswith("/") else f"/{target}"
    headers = message.headers.copy()
    headers["Host"] = authority
    raw = tuple(pair for pair in message.raw_headers if pair[0].lower() != b"host")
    raw += ((b"Host", authority.encode("utf-8", "surrogateescape")),)
    return message._replace(path=target, headers=type(message.headers)(headers), raw_headers=raw)
