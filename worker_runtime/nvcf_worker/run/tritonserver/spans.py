"""Times of single requests from what tritonserver exports in its trace mode `opentelemetry`. Pure.

Triton sends OTLP as JSON. Each request is a span `InferRequest` below the caller's, with a span for the model
below it (several for an ensemble), and in that a span `compute`. The wait in the queue is no span but lies
between the event QUEUE_START of the model's span and the start of `compute`.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/trace.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

REQUEST = "InferRequest"
COMPUTE = "compute"
MODEL = "triton.model_name"
MOST_WAITING = 1000
"""Spans that are kept until the request's own span comes, which ends last."""

Json = Mapping[str, Any]


class Execution(NamedTuple):
    """One execution of a model for one request. Times are nanoseconds since 1970; ids are as in OTLP."""

    trace_id: int
    parent_id: int
    model: str
    queued: int
    started: int
    ended: int


def spans_in(document: Any) -> list[Json]:
    """Return all spans of an OTLP export. Raises KeyError, TypeError or AttributeError for other JSON."""
    return [
        span
        for resource in document.get("resourceSpans", ())
        for scope in resource.get("scopeSpans", ())
        for span in scope.get("spans", ())
    ]


def executions(spans: Sequence[Json]) -> tuple[list[Execution], list[Json]]:
    """Return the executions of complete requests, and the spans whose request has not ended yet.

    At most MOST_WAITING spans are left, the newest. Raises KeyError or ValueError for malformed spans.
    """
    known = {(span["traceId"], span["spanId"]): span for span in spans}
    found: list[Execution] = []
    left: list[Json] = []
    for span in spans:
        request = _request_of(span, known)
        if request is None:
            left.append(span)
        elif span["name"] == COMPUTE and request.get("parentSpanId"):
            model = known[span["traceId"], span["parentSpanId"]]
            found.append(_execution(span, model, request))
    return found, left[-MOST_WAITING:]


def _request_of(span: Json, known: Mapping[tuple[str, str], Json]) -> Json | None:
    for _ in range(len(known)):
        if span["name"] == REQUEST:
            return span
        above = known.get((span["traceId"], span.get("parentSpanId", "")))
        if above is None:
            return None
        span = above
    return None


def _execution(compute: Json, model: Json, request: Json) -> Execution:
    started = int(compute["startTimeUnixNano"])
    queued = [
        int(event["timeUnixNano"]) for event in model.get("events", ()) if event["name"] == "QUEUE_START"
    ]
    names = [
        each["value"].get("stringValue", "") for each in model.get("attributes", ()) if each["key"] == MODEL
    ]
    return Execution(
        int(compute["traceId"], 16),
        int(request["parentSpanId"], 16),
        names[0] if names else str(model["name"]),
        min([*queued, started]),
        started,
        int(compute["endTimeUnixNano"]),
    )
