"""Setting up the function, told as a span and as a figure; in the worker or in a child process."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from nvcf_otel import names, spans
from nvcf_otel.process import age
from nvcf_otel.worker_instruments import INSTANCE_LOAD_DURATION
from nvcf_proto.environment import TRACEPARENT
from nvcf_worker.telemetry import values

_tracer = trace.get_tracer("nvcf_worker")


async def load(environ: Mapping[str, str], setting_up: Awaitable[None]) -> None:
    """Await the set-up; spans that it makes are below its own, which is below what `environ` names.

    The figure counts from the start of the process, so that it has the imports, too.
    """
    span = _tracer.start_span(names.LOAD, context=spans.below(spans.parsed(environ.get(TRACEPARENT))))
    token = otel_context.attach(trace.set_span_in_context(span))
    try:
        await setting_up
    except BaseException as error:
        span.set_attribute(names.ERROR_TYPE, type(error).__name__)
        span.set_status(Status(StatusCode.ERROR, str(error)))
        raise
    else:
        values.tell(INSTANCE_LOAD_DURATION.name, age(), {}, span)
    finally:
        otel_context.detach(token)
        span.end()
