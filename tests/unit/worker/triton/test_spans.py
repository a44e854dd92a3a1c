"""Times of single requests from Triton's trace export."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.run.tritonserver.spans import MOST_WAITING, Execution, executions, spans_in

TRACE = "0af7651916cd43dd8448eb211c80319c"


def span(name: str, own: str, parent: str = "", begin: int = 0, end: int = 0, **more: Any) -> dict[str, Any]:
    """A span as Triton exports it; without a parent the member is left out."""
    found = {"name": name, "traceId": TRACE, "spanId": own, **more}
    found |= {"startTimeUnixNano": str(begin), "endTimeUnixNano": str(end)}
    return found | ({"parentSpanId": parent} if parent else {})


def model(name: str, own: str, parent: str, queued: int) -> dict[str, Any]:
    attributes = [
        {"key": "triton.model_name", "value": {"stringValue": name}},
        {"key": "triton.model_version", "value": {"intValue": "1"}},
    ]
    events = [{"name": "QUEUE_START", "timeUnixNano": str(queued)}]
    return span(name, own, parent, queued, 90, attributes=attributes, events=events)


COMPUTE = span("compute", "0a", "0b", 30, 80)
MODEL = model("digits", "0b", "0c", 10)
REQUEST = span("InferRequest", "0c", "0d", 5, 95)
EXECUTION = Execution(int(TRACE, 16), 0x0D, "digits", 10, 30, 80)


def test_the_wait_lies_between_the_queue_and_the_computing() -> None:
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [COMPUTE, MODEL, REQUEST]}]}]}

    assert executions(spans_in(document)) == ([EXECUTION], [])


@given(st.integers(0, 3))
def test_spans_of_a_request_may_come_in_several_exports(cut: int) -> None:
    spans = [COMPUTE, MODEL, REQUEST]
    first, left = executions(spans[:cut])
    second, rest = executions([*left, *spans[cut:]])

    assert (first + second, rest) == ([EXECUTION], [])


def test_an_ensemble_has_an_execution_for_each_model() -> None:
    inner = [span("compute", "1a", "1b", 40, 50), model("features", "1b", "0b", 35)]
    outer = [COMPUTE | {"parentSpanId": "2b"}, model("digits", "2b", "0b", 10)]

    found, left = executions([*inner, *outer, model("read", "0b", "0c", 6), REQUEST])

    assert [(each.model, each.queued, each.parent_id) for each in found] == [
        ("features", 35, 0x0D),
        ("digits", 10, 0x0D),
    ]
    assert not left


def test_what_never_ends_is_bounded() -> None:
    spans = [span("compute", f"{at:x}", "ffff") for at in range(1, MOST_WAITING + 100)]

    found, left = executions(spans)

    assert not found
    assert left == spans[-MOST_WAITING:]
