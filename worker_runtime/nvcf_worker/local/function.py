"""A function of any kind in this process, run by the worker's own code with no platform around it."""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvcf_proto.headers import NVCF_PERCENT_COMPLETE
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.errors import CallerGone
from nvcf_worker.exchange.exchanges import Exchanges
from nvcf_worker.exchange.files import RequestFiles
from nvcf_worker.exchange.large_results import as_problem
from nvcf_worker.exchange.post import StreamBroken
from nvcf_worker.exchange.transport import NoGateway
from nvcf_worker.function.body import Download
from nvcf_worker.function.handlers import Handler
from nvcf_worker.function.loading import RunBlocking, begin_all, end_all
from nvcf_worker.function.request import Asset, FunctionContext
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.local.call import Call, LocalDownload, Progress, answer_headers
from nvcf_worker.message import AttachTarget, ReplyAddress, Work
from nvcf_worker.process.companions import Companion
from nvcf_worker.run.executor import Executor
from nvcf_worker.run.threads import ThreadPool
from nvcf_worker.runner import Runner, Services

log = logging.getLogger("nvcf_worker")

FUNCTION_ID = "00000000-0000-4000-8000-000000000001"
VERSION_ID = "00000000-0000-4000-8000-000000000002"
POLL_FOR_EVER = 1e12
"""Unix time until which a local caller goes on waiting after it was told of progress."""


class LocalFunction:
    """Serves calls of one function. `start` before the first, `stop` after the last; one event loop."""

    def __init__(self, handler: Handler, companion: Companion | None = None) -> None:
        self.broken: str | None = None
        """What a handler said with `Fatal`."""
        self._handler = handler
        self._companion = companion
        self._calls: dict[str, Call] = {}
        self._pool: ThreadPool | None = None
        self._runner: Runner
        self._blocking: RunBlocking
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    async def start(self) -> None:
        """Set the function up. Raises WorkerError when that fails."""
        loop = asyncio.get_running_loop()
        pool = self._pool = ThreadPool(loop)
        self._blocking = lambda call: pool.start(lambda _: call())
        # The directory is a few system calls on a local disk.
        self._directory = tempfile.TemporaryDirectory(prefix="nvcf-local-")
        base = Path(self._directory.name)
        context = FunctionContext(FUNCTION_ID, VERSION_ID, [("NVCF-FUNCTION-NAME", self._handler.name)])
        transport = _LocalTransport(self._calls)
        transport.exchanges = exchanges = Exchanges(transport)
        files = _LocalFiles(self._calls)
        self._runner = Runner(
            Executor(self._handler, pool, loop),
            exchanges,
            Services(base / "assets", base / "results", files, files, self._break),
            lambda: context,
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
        if self._directory is not None:
            self._directory.cleanup()

    def begin(self, call: Call) -> None:
        """Start a call; its answer goes to its sink, `call.wait()` waits for its end."""
        work = call.work()
        self._calls[call.id] = call
        call.task = call.scope.task = asyncio.create_task(self._run(call, work))

    async def _run(self, call: Call, work: Work) -> None:
        try:
            await self._runner.run(work, call.scope, _nothing)
        finally:
            del self._calls[call.id]

    def _break(self, reason: str) -> None:
        self.broken = reason


def _nothing() -> None:
    """A local request holds no slot."""


class _LocalFiles:
    """Local requests have no assets; result files, and large bodies, are passed on as they are."""

    def __init__(self, calls: dict[str, Call]) -> None:
        self._calls = calls

    async def fetch(self, message: nvcf_pb2.WorkerInvokeFunctionRequest, directory: Path) -> dict[str, Asset]:
        return {}

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


class _LocalTransport:
    """Carries bodies from the callers' iterators, and responses to their sinks.

    A caller that gets progress polls again at once.
    """

    exchanges: Exchanges

    def __init__(self, calls: dict[str, Call]) -> None:
        self._calls = calls

    async def fetch(self, target: AttachTarget, *, whole_request: bool, attempt: int) -> Download:
        body = self._calls[target.request_token or ""].body
        assert not isinstance(body, bytes)  # noqa: S101 # those have no token
        return LocalDownload(body)

    async def find_gateway(self, request_id: str) -> ReplyAddress | NoGateway:
        return NoGateway.NO_ANSWER

    async def listen(self, request_id: str) -> None:
        """Local callers never leave to poll."""

    async def post(self, address: ReplyAddress, reply: Reply) -> None:
        """The caller has seen its stream break."""

    async def deliver(self, address: ReplyAddress, response: Outcome, sent: Callable[[], None]) -> None:
        call = self._calls.get(address.target.response_token)
        if call is None or call.scope.end is not None:
            raise CallerGone("the caller is gone")
        if isinstance(response, Reply) and (progress := _progress_of(response)) is not None:
            call.progress.append(progress)
            log.info("progress of request %s: %g %%", call.id, progress.percent)
            if self.exchanges.is_open(call.id):
                self.exchanges.polled(call.id, address, POLL_FOR_EVER)
            return
        call.started = True
        headers = answer_headers(response.headers, call.id)
        if isinstance(response, Reply):
            await call.sink.start(response.status, headers, len(response.body))
            if response.body:
                await call.sink.write(response.body)
        else:
            await call.sink.start(response.status, headers, response.length)
            await _pass_on(response, call)
        await call.sink.finish()
        call.finished = True
        sent()


def _progress_of(reply: Reply) -> Progress | None:
    """What a 202 with NVCF-PERCENT-COMPLETE says (protocol.md, section 4.4); None for any other answer."""
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


async def _pass_on(response: StreamReply, call: Call) -> None:
    chunk = response.first
    while True:
        if chunk:
            await call.sink.write(chunk)
        try:
            chunk = await response.source.__anext__()
        except StopAsyncIteration:
            return
        except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            raise StreamBroken("the handler failed in the middle of its answer") from error
