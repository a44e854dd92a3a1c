"""`TestClient`: run a function in memory and call it from synchronous code."""

from __future__ import annotations

import asyncio
import json as json_module
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

from nvcf_worker.function.handlers import classify, is_asgi
from nvcf_worker.local.function import LocalFunction
from nvcf_worker.local.request import LocalRequest
from nvcf_worker.process.companions import Companion
from nvcf_worker.testing.results import Collector, Pending, Result, Stream

T = TypeVar("T")
Body = bytes | str | Iterable[bytes] | None
HeaderInput = Mapping[str, str] | Iterable[tuple[str, str]] | None

DEFAULT_TIMEOUT = 30.0
_UNSET = object()


class TestClient:
    """Calls a handler as a worker runs it: same requests, results, errors, streams and cancellation.

    handler: anything that `serve` accepts, also an ASGI application.
    asgi, media_type: as for `serve`.
    timeout: seconds that any single step may take.

    A context manager: `setup` runs when it is entered (otherwise with the first call), `teardown` when it is
    left. Several threads may call it. Raises HandlerError for an invalid handler, WorkerError if its setup
    fails.
    """

    __test__ = False  # pytest takes the name for a test class

    def __init__(
        self,
        handler: Callable[..., Any] | None = None,
        *,
        asgi: Callable[..., Any] | None = None,
        media_type: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        companion: Companion | None = None
        if asgi is not None or is_asgi(handler):
            from nvcf_worker.run.asgi.host import AsgiHost

            host = AsgiHost(asgi if asgi is not None else handler)
            handler, companion = host.handle, host
        self._function = LocalFunction(classify(handler, media_type), companion)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._running()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the requests in flight and tear the function down. Repeated calls have no effect."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._function.stop(), loop).result(self._timeout)
        finally:
            _end(loop, thread)

    @property
    def broken(self) -> str | None:
        """The text of a `Fatal` that a handler has raised, after which a worker would exit."""
        return self._function.broken

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is not None:
                return self._loop
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_run_forever, args=(loop,), name="nvcf-test-client", daemon=True)
            thread.start()
            try:
                asyncio.run_coroutine_threadsafe(self._function.start(), loop).result(self._timeout)
            except BaseException:
                _end(loop, thread)
                raise
            self._loop, self._thread = loop, thread
            return loop

    def _await(self, step: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        future = asyncio.run_coroutine_threadsafe(step, self._running())
        try:
            return future.result(timeout or self._timeout)
        except TimeoutError:
            if not future.done():
                future.cancel()
                raise TimeoutError(f"no response within {timeout or self._timeout:g} s") from None
            raise

    # --- calls

    def __call__(self, json: Any = _UNSET, **options: Any) -> Any:
        """POST and return the decoded response: JSON, text or bytes; None for 204. Raises CallFailed."""
        result = self.request("POST", "/", json=json, **options).raise_for_status()
        if result.status == 204:
            return None
        if result.media_type in ("application/json", "application/x-ndjson"):
            return result.json()
        return result.text if result.media_type.startswith("text/") else result.body

    def post(self, path: str = "/", **options: Any) -> Result:
        """Call `request("POST", ...)`."""
        return self.request("POST", path, **options)

    def get(self, path: str = "/", **options: Any) -> Result:
        """Call `request("GET", ...)`."""
        return self.request("GET", path, **options)

    def request(
        self, method: str, path: str = "/", *, timeout: float | None = None, **options: Any
    ) -> Result:
        """Return the complete response; `options` as for `start`. Raises StreamFailed, TimeoutError."""
        return self.start(method, path, **options).result(timeout)

    def batch(self, inputs: Iterable[Any], path: str = "/", *, method: str = "POST") -> list[Result]:
        """Call with each input as JSON, all at once. Return the results in the order of the inputs."""
        pending = [self.start(method, path, json=one) for one in inputs]
        return [one.result() for one in pending]

    def stream(self, method: str = "POST", path: str = "/", **options: Any) -> Stream:
        """Return a context manager that reads the response chunk by chunk; `options` as for `start`."""
        return Stream(self.start(method, path, **options))

    def start(
        self,
        method: str = "POST",
        path: str = "/",
        *,
        json: Any = _UNSET,
        data: Body = None,
        headers: HeaderInput = None,
        attempt: int = 1,
        subject: str = "local",
        nca_id: str = "local",
    ) -> Pending:
        """Start a call without waiting for its response.

        json: the body as JSON.
        data: the body; an iterator of chunks is read as fast as the handler reads the body.
        headers: headers of the request.
        attempt: number of this delivery of the request, from 1.
        subject, nca_id: the caller.
        """
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers or ())
        body: bytes | AsyncIterator[bytes]
        if json is not _UNSET:
            body = json_module.dumps(json).encode()
            if not any(name.lower() == "content-type" for name, _ in pairs):
                pairs.append(("Content-Type", "application/json"))
        elif isinstance(data, str):
            body = data.encode()
        elif data is None or isinstance(data, bytes):
            body = data or b""
        else:
            body = _from_iterator(iter(data))

        async def begin() -> Pending:
            collector = Collector()
            request = LocalRequest(
                collector, method, path, pairs, body, attempt=attempt, subject=subject, nca_id=nca_id
            )
            self._function.begin(request)
            return Pending(self._await, request, collector)

        return self._await(begin())


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        try:
            return loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            # Raised by a task that the handler has started; as in a worker, only that has failed.
            continue


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _from_iterator(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
