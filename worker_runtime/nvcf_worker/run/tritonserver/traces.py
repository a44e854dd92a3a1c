"""Takes the spans of the worker's tritonserver, and records them below the spans of their requests.

Triton exports by OTLP over HTTP with JSON alone. The worker takes that on this machine and sends it on by its
own exporter, so that any protocol, credentials and redaction of the worker hold for them, too.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence

from aiohttp import web
from opentelemetry import trace
from opentelemetry.trace import SpanContext, TraceFlags

from nvcf_otel import names, spans
from nvcf_worker.function.headers import Headers
from nvcf_worker.function.request import Request
from nvcf_worker.run.tritonserver.settings import LOOPBACK
from nvcf_worker.run.tritonserver.spans import Execution, Json, executions, spans_in

log = logging.getLogger("nvcf_worker")

OPTION = "--trace-config"
DELAY_MS = 1000
_MOST_BYTES = 16 * 1024 * 1024


def wanted(command: Sequence[str]) -> bool:
    """Return whether to take spans: the worker records traces, and the user has not set Triton's own."""
    return spans.is_tracing() and not any(word.startswith(OPTION) for word in command)


class TraceReceiver:
    """A server on a port of this machine to which one tritonserver sends its spans."""

    def __init__(self) -> None:
        self._path = f"/{secrets.token_urlsafe(16)}/v1/traces"  # models could send, too
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._waiting: list[Json] = []

    async def start(self) -> None:
        """Listen on a free port."""
        application = web.Application(client_max_size=_MOST_BYTES)
        application.router.add_post(self._path, self._take)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, 0).start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop listening."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def arguments(self) -> list[str]:
        """Return arguments of tritonserver. Rate 0: only requests with a trace context are traced."""
        return [
            f"{OPTION}={each}"
            for each in (
                "mode=opentelemetry",
                "rate=0",
                "level=TIMESTAMPS",
                f"opentelemetry,url=http://{LOOPBACK}:{self._port}{self._path}",
                f"opentelemetry,bsp_schedule_delay={DELAY_MS}",
            )
        ]

    async def _take(self, request: web.Request) -> web.Response:
        try:
            found, self._waiting = executions([*self._waiting, *spans_in(await request.json())])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._waiting = []
            log.warning("spans of Triton cannot be read: %s: %s", type(error).__name__, error)
            return web.Response(status=400)
        for each in found:
            record(each)
        return web.Response()


def record(execution: Execution) -> None:
    """Record the wait in Triton's queue and the computing as spans below the request's."""
    parent = SpanContext(execution.trace_id, execution.parent_id, False, TraceFlags(TraceFlags.SAMPLED))
    tracer, context = trace.get_tracer("nvcf_worker.triton"), spans.below(parent)
    attributes = {names.TRITON_SPAN_MODEL: execution.model}
    for name, begin, end in (
        (names.TRITON_QUEUE, execution.queued, execution.started),
        (names.TRITON_COMPUTE, execution.started, execution.ended),
    ):
        tracer.start_span(name, context, start_time=begin, attributes=attributes).end(end)


def without_context_if_unrecorded(request: Request) -> None:
    """Remove the trace context of a request that is not recorded: Triton would record it."""
    if not trace.get_current_span().get_span_context().trace_flags.sampled:
        request._headers = Headers(
            [pair for pair in request.headers.pairs() if pair[0].lower() != "traceparent"]
        )
