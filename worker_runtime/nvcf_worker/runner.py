"""The way of one request: request object, handler, delivery, acknowledgement."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextvars import Token

from nvcf_proto.errors import ContractError
from nvcf_proto.h1 import RequestDecoder, RequestHead
from nvcf_proto.problem import Problem
from nvcf_worker import logs
from nvcf_worker.active import ActiveRequest, End
from nvcf_worker.attach import AttachClient, HttpDownload
from nvcf_worker.body import Download, Opener, RequestBody
from nvcf_worker.delivery import Deliverer, StreamBroken
from nvcf_worker.errors import BodyUnavailable, CallerGone, DeliveryError, FunctionError
from nvcf_worker.execution import Executor, Outcome
from nvcf_worker.inflight import ACK, NAK, InFlight
from nvcf_worker.request import FunctionContext, Request, SyncRequest
from nvcf_worker.response import problem_reply

log = logging.getLogger("nvcf_worker")

SOURCE = "inference-service"


class Runner:
    """Runs requests; each call of `run` is one request and never raises but for cancellation at exit."""

    def __init__(
        self,
        executor: Executor,
        deliverer: Deliverer,
        attach: AttachClient,
        inflight: InFlight,
        context: Callable[[], FunctionContext],
        release: Callable[[ActiveRequest], None],
    ) -> None:
        self._executor = executor
        self._deliverer = deliverer
        self._attach = attach
        self._inflight = inflight
        self._context = context
        self._release = release

    async def run(self, active: ActiveRequest) -> None:
        """Run one request to its acknowledgement."""
        token = logs.request_id.set(active.work.request_id)
        trace = logs.attach_trace(active.work.trace) if active.work.trace is not None else None
        try:
            active.interruptible = True
            if active.end is None:
                await self._answer(active)
        except asyncio.CancelledError:
            if active.end is None:
                raise
            log.info("request stopped: %s", active.end.value)
        except CallerGone as error:
            log.info("request abandoned: %s", error)
        except StreamBroken as error:
            log.error("the answer broke off: %s", error, exc_info=error.__cause__)
        except DeliveryError as error:
            log.error("the answer could not be delivered: %s", error)
        except Exception:
            log.exception("the worker failed to handle a request")
        finally:
            self._end(active, token, trace)
        await self._inflight.settle(active, _verdict(active.end))

    def _end(self, active: ActiveRequest, token: Token[str | None], trace: object) -> None:
        active.interruptible = False
        self._release(active)
        if active.body is not None:
            active.body.abort()
        if trace is not None:
            logs.detach_trace(trace)
        logs.request_id.reset(token)

    async def _answer(self, active: ActiveRequest) -> None:
        outcome = await self._outcome(active)
        await self._deliverer.deliver(active.work, outcome, functools.partial(self._release, active))

    async def _outcome(self, active: ActiveRequest) -> Outcome:
        try:
            request = await self._request(active)
            return await self._executor.run(request, active)
        except FunctionError as error:
            log.info("answered with %d: %s", error.status, error.detail)
            return problem_reply(Problem(error.title, error.status, error.detail, SOURCE))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if active.end is not None or (task is not None and task.cancelling()):
                raise
            log.exception("the handler let a cancellation of its own escape")
        except (Exception, SystemExit):
            log.exception("the handler failed")
        detail = f"The function failed to handle request {active.work.request_id}."
        return problem_reply(Problem("Internal Server Error", 500, detail, SOURCE))

    async def _request(self, active: ActiveRequest) -> Request | SyncRequest:
        message = active.work.message
        if message.requestMethod:
            body = RequestBody(message.requestBody, self._opener(active))
            method, target, sent = message.requestMethod, message.requestPath, None
        else:
            head, body = await self._whole_request(active)
            method, target, sent = head.method, head.target, head.headers
        active.body = body
        return self._executor.request_type(
            active.work, self._context(), body, active.cancelled, method=method, target=target, sent=sent
        )

    def _opener(self, active: ActiveRequest) -> Opener | None:
        target = active.work.target
        if target.request_token is None:
            return None
        return functools.partial(self._attach.fetch, target, whole_request=False)

    async def _whole_request(self, active: ActiveRequest) -> tuple[RequestHead, RequestBody]:
        """Fetch a request that the message leaves out altogether (protocol.md section 3, GET)."""
        target = active.work.target
        if target.request_token is None:
            raise BodyUnavailable("the message has neither a request nor a token to fetch it")
        download = await self._attach.fetch(target, whole_request=True)
        chunks = aiter(download)
        decoder = RequestDecoder()
        try:
            async for chunk in chunks:
                parts = decoder.feed(chunk)
                if parts:
                    break
            else:
                decoder.close()
                raise BodyUnavailable("the request broke off")
        except ContractError as error:
            download.close()
            raise BodyUnavailable(f"the gateway sent a malformed request: {error}") from error
        head = parts[0]
        if not isinstance(head, RequestHead):
            raise BodyUnavailable("the gateway sent no request head")
        rest = b"".join(part for part in parts[1:] if isinstance(part, bytes))

        async def opened() -> Download:
            return _Continued(download, chunks)

        return head, RequestBody(rest, opened)


def _verdict(end: End | None) -> bytes | None:
    """What the broker is told: an abandoned request must not be tried again, one that was given up must."""
    if end is End.HANDED_BACK:
        return NAK
    # The broker has long redelivered it by itself; whoever has it now must not be disturbed.
    return None if end is End.CONNECTION_LOST else ACK


class _Continued:
    """A download whose beginning has been read."""

    def __init__(self, download: HttpDownload, chunks: AsyncIterator[bytes]) -> None:
        self._download = download
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._download.close()
