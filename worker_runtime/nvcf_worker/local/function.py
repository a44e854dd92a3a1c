"""Run a function of any kind in this process with the worker's own code, without a platform."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvcf_proto.headers import NVCF_PERCENT_COMPLETE, NVCF_REQID
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.errors import CallerGone
from nvcf_worker.exchange.exchanges import Exchanges
from nvcf_worker.exchange.files import RequestFiles
from nvcf_worker.exchange.large_results import as_problem
from nvcf_worker.exchange.post import StreamBroken
from nvcf_worker.exchange.transport import NoGateway
from nvcf_worker.function.body import Download
from nvcf_worker.function.cancellation import End
from nvcf_worker.function.handlers import Handler
from nvcf_worker.function.loading import RunBlocking, begin_all, end_all
from nvcf_worker.function.request import Asset, FunctionContext
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.function.time_limit import TimeLimit
from nvcf_worker.local.request import LocalDownload, LocalRequest, Progress, Sink
from nvcf_worker.message import AttachTarget, ReplyAddress, Work
from nvcf_worker.process.companions import Companion, cancelled
from nvcf_worker.run.executor import Executor
from nvcf_worker.run.threads import ThreadPool
from nvcf_worker.runner import Runner, Services

log = logging.getLogger("nvcf_worker")

FUNCTION_ID = "00000000-0000-4000-8000-000000000001"
VERSION_ID = "00000000-0000-4000-8000-000000000002"
POLL_FOR_EVER = 1e12
"""Unix time until which a local caller waits after it got a progress report."""


class LocalFunction:
    """Serves requests to one function, in one event loop, between `start` and `stop`."""

    def __init__(
        self, handler: Handler, companion: Companion | None = None, time_limit: TimeLimit | None = None
    ) -> None:
        self.broken: str | None = None
        """The text of a `Fatal` that a handler has raised."""
        self._handler = handler
        self._companion = companion
        self._time_limit = time_limit
        self._watching: asyncio.Task[None] | None = None
        self._requests: dict[str, LocalRequest] = {}
        self._pool: ThreadPool | None = None
        self._runner: Runner
        self._blocking: RunBlocking
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    async def start(self) -> None:
        """Set the function up. Raises WorkerError if that fails."""
        loop = asyncio.get_running_loop()
        pool = self._pool = ThreadPool(loop)
        self._blocking = lambda call: pool.start(lambda _: call())
        # Not on a thread: it takes only a few system calls on a local disk.
        self._directory = tempfile.TemporaryDirectory(prefix="nvcf-local-")
        base = Path(self._directory.name)
        context = FunctionContext(FUNCTION_ID, VERSION_ID, [("NVCF-FUNCTION-NAME", self._handler.name)])
        transport = _LocalTransport(self._requests)
        transport.exchanges = exchanges = Exchanges(transport)
        files = _LocalFiles(self._requests)
        self._runner = Runner(
            Executor(self._handler, pool, loop),
            exchanges,
            Services(base / "assets", base / "results", files, files, self._break),
            lambda: context,
            _time_limit=self._time_limit,
        )
        try:
            await begin_all(self._handler.loading, self._blocking)
            if self._companion is not None:
                await self._companion.start()
                self._watching = asyncio.create_task(self._companion.watch(self))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Cancel the requests in flight, and tear the function down."""
        for request in tuple(self._requests.values()):
            request.cancel()
            await request.wait()
        if self._watching is not None:
            await cancelled(self._watching)
        if self._companion is not None:
            await self._companion.stop()
        if self._pool is not None:
            await end_all(self._handler.loading, self._blocking)
            self._pool.close()
        if self._directory is not None:
            self._directory.cleanup()

    def begin(self, request: LocalRequest) -> None:
        """Start a request. Its response goes to its sink; `request.wait()` waits for its end."""
        work = request.work()
        self._requests[request.id] = request
        request.task = request.scope.task = asyncio.create_task(self._run(request, work))

    async def _run(self, request: LocalRequest, work: Work) -> None:
        try:
            # A local request holds no slot that has to be released.
            await self._runner.run(work, request.scope, lambda: None)
        finally:
            del self._requests[request.id]

    def pause(self) -> None:
        """Do nothing: requests wait for the companion."""

    def resume(self) -> None:
        """Do nothing: requests are always taken."""

    def unhealthy(self, reason: str) -> None:
        """Log why a worker would leave now."""
        log.critical("this instance is unhealthy: %s", reason)
        self._break(reason)

    def _break(self, reason: str) -> None:
        self.broken = reason


class _LocalFiles:
    """Collects result files. Local requests have no assets, and large bodies are passed on as they are."""

    def __init__(self, requests: dict[str, LocalRequest]) -> None:
        self._requests = requests

    async def fetch(self, message: nvcf_pb2.WorkerInvokeFunctionRequest, directory: Path) -> dict[str, Asset]:
        return {}

    async def finish(
        self, message: nvcf_pb2.WorkerInvokeFunctionRequest, outcome: Outcome, files: RequestFiles | None
    ) -> Outcome:
        if outcome.status >= 400 and isinstance(outcome, Reply):
            return as_problem(outcome)
        if files is not None and files.output_made:
            self._requests[message.requestId].files.update(await asyncio.to_thread(_contents, files))
        return outcome


def _contents(files: RequestFiles) -> dict[str, bytes]:
    base = files.output_path
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in files.results()}


class _LocalTransport:
    """Carries bodies from the callers' iterators, and responses to the callers' sinks.

    After a progress report the caller polls again at once.
    """

    exchanges: Exchanges

    def __init__(self, requests: dict[str, LocalRequest]) -> None:
        self._requests = requests

    async def fetch(self, target: AttachTarget, *, whole_request: bool, attempt: int) -> Download:
        body = self._requests[target.request_token or ""].body
        assert not isinstance(body, bytes)  # noqa: S101 # requests with such a body have no token
        return LocalDownload(body)

    async def find_gateway(self, request_id: str) -> ReplyAddress | NoGateway:
        return NoGateway.NO_ANSWER

    async def listen(self, request_id: str) -> None:
        """Do nothing: local callers poll in `deliver`."""

    async def post(self, address: ReplyAddress, reply: Reply) -> None:
        """Do nothing: the caller sees that its stream broke."""

    async def deliver(self, address: ReplyAddress, response: Outcome, sent: Callable[[], None]) -> None:
        request = self._requests.get(address.target.response_token)
        if request is None or request.scope.end not in (None, End.TIME_LIMIT):
            raise CallerGone("the caller is gone")
        if isinstance(response, Reply) and (progress := _progress_of(response)) is not None:
            request.progress.append(progress)
            log.info("progress of request %s: %g %%", request.id, progress.percent)
            if self.exchanges.is_open(request.id):
                self.exchanges.polled(request.id, address, POLL_FOR_EVER)
            return
        headers = [*response.headers, (NVCF_REQID.lower(), request.id)]
        if isinstance(response, Reply):
            await request.sink.start(response.status, headers, len(response.body))
            if response.body:
                await request.sink.write(response.body)
        else:
            await request.sink.start(response.status, headers, response.length)
            await _pass_on(response, request.sink)
        await request.sink.finish()
        request.finished = True
        sent()


def _progress_of(reply: Reply) -> Progress | None:
    """Return the progress in a 202 with NVCF-PERCENT-COMPLETE (protocol.md, section 4.4); None in others."""
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


async def _pass_on(response: StreamReply, sink: Sink) -> None:
    chunk = response.first
    while True:
        if chunk:
            await sink.write(chunk)
        try:
            chunk = await response.source.__anext__()
        except StopAsyncIteration:
            return
        except Exception as error:
            raise StreamBroken("the handler failed in the middle of its response") from error
