"""A caller of the platform: plain HTTP with an API key, without the project's libraries."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
from examples.demo.failure import DemoFailure
from examples.demo.sse import Event, EventDecoder

REQUEST_ID = "nvcf-reqid"
# How long a caller waits for an answer, in seconds; the platform is told so.
PATIENCE = 90


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response. `seconds` is the time from sending the request to the last byte."""

    status: int
    request_id: str
    body: bytes
    seconds: float

    def json(self) -> Any:
        """Return the JSON body. Raises `DemoFailure` for an error or another body."""
        if self.status != 200:
            raise DemoFailure(f"request {self.request_id} was answered {self.status}: {explain(self.body)}")
        return parse_json(self.body)


def parse_json(body: bytes | str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise DemoFailure(f"an answer is not JSON: {body[:200]!r}") from None


def explain(body: bytes) -> str:
    """Return the detail of an error's body (RFC 9457), or its beginning."""
    try:
        problem = json.loads(body)
        return str(problem.get("detail") or problem["title"])
    except (ValueError, KeyError, AttributeError):
        return body[:200].decode("utf-8", "replace") or "(no body)"


class Caller:
    """Use as an async context manager. `url` without a slash at the end."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=PATIENCE + 10, connect=5)
        headers = {"authorization": f"Bearer {self._key}", "nvcf-poll-seconds": str(PATIENCE)}
        # No limit of connections: a burst must not keep the questions about it waiting.
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(timeout=timeout, headers=headers, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the caller is used outside of its context")
        return self._session

    def invocation_url(self, function_id: str) -> str:
        return f"{self._url}/v2/nvcf/pexec/functions/{function_id}"

    async def invoke(self, function_id: str, data: bytes, headers: Mapping[str, str]) -> Answer:
        started = time.perf_counter()
        try:
            async with self.session.post(
                self.invocation_url(function_id), data=data, headers=dict(headers)
            ) as response:
                body = await response.read()
                request_id = response.headers.get(REQUEST_ID, "?")
                return Answer(response.status, request_id, body, time.perf_counter() - started)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DemoFailure(f"the request got no answer: {describe(error)}") from error

    async def events(self, function_id: str, order: Mapping[str, Any]) -> AsyncIterator[Event]:
        """Yield each event as soon as it is complete."""
        headers = {"accept": "text/event-stream"}
        decoder = EventDecoder()
        try:
            async with self.session.post(
                self.invocation_url(function_id), json=dict(order), headers=headers
            ) as response:
                if response.status != 200:
                    body = await response.read()
                    raise DemoFailure(f"the stream was answered {response.status}: {explain(body)}")
                async for chunk in response.content.iter_any():
                    for event in decoder.feed(chunk):
                        yield event
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DemoFailure(f"the stream broke off: {describe(error)}") from error

    async def get(self, path: str) -> Any:
        try:
            async with self.session.get(self._url + path) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise DemoFailure(f"GET {path}: {describe(error)}") from error
        if response.status != 200:
            raise DemoFailure(f"GET {path} was answered {response.status}: {explain(body)}")
        return parse_json(body)


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")
