"""A function of any kind in this process, run by the worker's own code with no platform around it."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from nvcf_proto.headers import NVCF_PERCENT_COMPLETE
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.errors import CallerGone, ControlError
from nvcf_worker.exchange.assets import AssetFetcher, HttpClient
from nvcf_worker.exchange.attach import AttachClient, HttpDownload
from nvcf_worker.exchange.deliver import Deliverer
from nvcf_worker.exchange.fallback_gateway import Rescuer
from nvcf_worker.exchange.files import RequestFiles
from nvcf_worker.exchange.large_results import LargeResults, as_problem
from nvcf_worker.exchange.post import StreamBroken
from nvcf_worker.exchange.transports import Channels
from nvcf_worker.function.handlers import Handler
from nvcf_worker.function.loading import RunBlocking, begin_all, end_all
from nvcf_worker.function.request import FunctionContext
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.local.call import Call, LocalDownload, Progress, answer_headers
from nvcf_worker.message import AttachTarget, Door
from nvcf_worker.process.companions import Companion
from nvcf_worker.queue.inflight import InFlight
from nvcf_worker.queue.puller import ConsumerLimits
from nvcf_worker.run.executor import Executor
from nvcf_worker.run.threads import ThreadPool
from nvcf_worker.runner import Runner, Services
from nvcf_worker.sessions.tunnel import Tunnels

log = logging.getLogger("nvcf_worker")

FUNCTION_ID = "00000000-0000-4000-8000-000000000001"
VERSION_ID = "00000000-0000-4000-8000-000000000002"
POLL_FOR_EVER = 1e12
"""Unix time until which a local caller goes on waiting after it was told of progress."""

# One delivery: nobody would deliver a request again, so `RetryLater` is answered at once.
_LIMITS = ConsumerLimits(max_deliver=1)


class LocalFunction:
    """Serves calls of one function. `start` before the first, `stop` after the last; one event loop."""

    def __init__(self, handler: Handler, companion: Companion | None = None) -> None:
        self.broken: str | None = None
        """What a handler said with `Fatal`."""
        self._handler = handler
        self._companion = companion
        self._calls: dict[str, Call] = {}
        self._inflight = InFlight(None)
        self._pool: ThreadPool | None = None
        self._runner: Runner
        self._blocking: RunBlocking
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._http = HttpClient()

    async def start(self) -> None:
        """Set the function up. Raises WorkerError when that fails."""
        loop = asyncio.get_running_loop()
        pool = self._pool = ThreadPool(loop)
        self._blocking = lambda call: pool.start(lambda _: call())
        # The directory is a few system calls on a local disk.
        self._directory = tempfile.TemporaryDirectory(prefix="nvcf-local-")
        base = Path(self._directory.name)
        context = FunctionContext(FUNCTION_ID, VERSION_ID, [("NVCF-FUNCTION-NAME", self._handler.name)])
        self._runner = Runner(
            Executor(self._handler, pool, loop),
            Channels(
                _LocalDeliverer(self._calls),
                _LocalAttach(self._calls),
                Rescuer(VERSION_ID, lambda: None),
                _no_polls,
            ),
            Services(
                base / "assets",
                base / "results",
                AssetFetcher(self._http, _NoCredentials()),
                _LocalResults(self._http, self._calls),
                self._break,
            ),
            self._inflight,
            lambda: context,
            lambda _: None,
            Tunnels(None, FUNCTION_ID, VERSION_ID, lambda: None),
        )
        try:
            await begin_all(self._handler.loading, self._blocking)
            if self._companion is not None:
                await self._companion.start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Cancel what is in work, and tear the function down."""
        for call in tuple(self._calls.values()):
            call.cancel()
            await call.wait()
        if self._companion is not None:
            await self._companion.stop()
        if self._pool is not None:
            await end_all(self._handler.loading, self._blocking)
            self._pool.close()
        await self._http.close()
        if self._directory is not None:
            self._directory.cleanup()

    def begin(self, call: Call) -> None:
        """Start a call; its answer goes to its sink, `call.wait()` waits for its end."""
        call.active = self._inflight.add(call.work(), _LIMITS)
        self._calls[call.id] = call
        call.task = call.active.task = asyncio.create_task(self._run(call))

    async def _run(self, call: Call) -> None:
        assert call.active is not None  # noqa: S101 # set by begin
        try:
            await self._runner.run(call.active)
        finally:
            del self._calls[call.id]

    def _break(self, reason: str) -> None:
        self.broken = reason


async def _no_polls(request_id: str) -> None:
    """Local callers never leave to poll."""


class _NoCredentials:
    """There is no platform to ask."""

    async def refresh_asset(self, request_id: str, asset_id: str, api: str) -> str:
        raise ControlError("there is no platform", permanent=True)

    async def refresh_upload(self, request_id: str, api: str) -> str:
        raise ControlError("there is no platform", permanent=True)

    async def download_url(self, request_id: str, nca_id: str) -> str:
        raise ControlError("there is no platform", permanent=True)


class _LocalAttach(AttachClient):
    """Bodies come from the callers' iterators."""

    def __init__(self, calls: dict[str, Call]) -> None:
        super().__init__()
        self._calls = calls

    async def fetch(self, target: AttachTarget, *, whole_request: bool, attempt: int) -> HttpDownload:
        body = self._calls[target.request_token or ""].body
        assert not isinstance(body, bytes)  # noqa: S101 # those have no token
        return cast(HttpDownload, LocalDownload(body))


class _LocalResults(LargeResults):
    """Result files are handed over as they are, large bodies too."""

    def __init__(self, http: HttpClient, calls: dict[str, Call]) -> None:
        super().__init__(http, _NoCredentials())
        self._calls = calls

    async def finish(
        self, message: nvcf_pb2.WorkerInvokeFunctionRequest, outcome: Outcome, files: RequestFiles | None
    ) -> Outcome:
        if outcome.status >= 400 and isinstance(outcome, Reply):
            return as_problem(outcome)
        if files is not None and files.output_made:
            self._calls[message.requestId].files.update(await asyncio.to_thread(_contents, files))
        return outcome


def _contents(files: RequestFiles) -> dict[str, bytes]:
    base = files.output_path
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in files.results()}


class _LocalDeliverer(Deliverer):
    """Answers go to the callers' sinks. A caller that is told of progress polls again at once."""

    def __init__(self, calls: dict[str, Call]) -> None:
        super().__init__(AttachClient(), lambda: None)
        self._calls = calls

    async def deliver(self, door: Door, outcome: Outcome, written: Callable[[], None]) -> None:
        call = self._calls.get(door.target.response_token)
        if call is None or call.active is None or call.active.end is not None:
            raise CallerGone("the caller is gone")
        if isinstance(outcome, Reply) and (told := _progress_of(outcome)) is not None:
            call.progress.append(told)
            log.info("progress of request %s: %g %%", call.id, told.percent)
            if call.active.conversation is not None:
                call.active.conversation.polled(door, POLL_FOR_EVER)
            return
        call.started = True
        headers = answer_headers(outcome.headers, call.id)
        if isinstance(outcome, Reply):
            await call.sink.start(outcome.status, headers, len(outcome.body))
            if outcome.body:
                await call.sink.write(outcome.body)
        else:
            await call.sink.start(outcome.status, headers, outcome.length)
            await _pass_on(outcome, call)
        await call.sink.finish()
        call.finished = True
        written()


def _progress_of(reply: Reply) -> Progress | None:
    """What a 202 with NVCF-PERCENT-COMPLETE says (protocol.md section 4); None for any other answer."""
    percent = dict(reply.headers).get(NVCF_PERCENT_COMPLETE.lower())
    if reply.status != 202 or percent is None:
        return None
    kind = dict(reply.headers).get("content-type", "")
    partial: Any = reply.body or None
    if reply.body and kind.startswith("application/json"):
        partial = json.loads(reply.body)
    elif reply.body and kind.startswith("text/"):
        partial = reply.body.decode()
    return Progress(float(percent), partial)


async def _pass_on(outcome: StreamReply, call: Call) -> None:
    chunk = outcome.first
    while True:
        if chunk:
            await call.sink.write(chunk)
        try:
            chunk = await outcome.source.__anext__()
        except StopAsyncIteration:
            return
        except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            raise StreamBroken("the handler failed in the middle of its answer") from error
