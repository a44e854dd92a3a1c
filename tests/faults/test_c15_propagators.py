"""C15: OTEL_PROPAGATORS was ignored: a trace of B3 headers ended at the gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nvcf_otel.propagation import propagators_from
from tests.support.otlp.receiver import OtlpReceiver
from tests.support.platform.gateways import running_platform
from tests.support.waiting import eventually

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "00f067aa0ba902b7"
FUNCTION = """
from nvcf_worker import Request, serve

async def seen(request: Request):
    return {"headers": dict(request.headers), "context": dict(request.trace_context)}

serve(seen)
"""


async def called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, sent: dict[str, str], *, telemetry: bool
) -> dict[str, dict[str, str]]:
    """Call a function with trace headers; return what it saw."""
    monkeypatch.setenv("OTEL_PROPAGATORS", names)
    file = tmp_path / "function.py"
    file.write_text(FUNCTION)
    with OtlpReceiver() as backend:
        own = backend.environment() if telemetry else {}
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        async with running_platform(tmp_path) as platform:
            version = await platform.deployed_version()
            environment = {"OTEL_PROPAGATORS": names, **own}
            worker = await platform.start_worker(version, file, environment=environment)
            await eventually(lambda: "pulling requests" in worker.text(), "ready", story=worker.text)
            url = platform.gateway.url + version.pexec
            headers = {**platform.authorization(), **sent}
            async with platform.session.post(url, headers=headers) as response:
                found: dict[str, dict[str, str]] = json.loads(await response.read())
                return found


@pytest.mark.parametrize("telemetry", [False, True])
async def test_c15_a_b3_trace_goes_on_in_the_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, telemetry: bool
) -> None:
    found = await called(
        tmp_path, monkeypatch, "b3", {"b3": f"{TRACE}-{SPAN}-1"}, telemetry=telemetry
    )  # fmt: skip
    trace, span, flag = found["headers"]["b3"].split("-")
    assert (trace, flag) == (TRACE, "1")
    assert (span != SPAN) == telemetry, "the handler's own span, where there is one"
    assert found["context"] == {"b3": found["headers"]["b3"]}
    assert "traceparent" not in found["headers"]


async def test_c15_several_headers_of_b3_beside_w3c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {"X-B3-TraceId": TRACE[16:], "X-B3-SpanId": SPAN, "X-B3-Sampled": "0", "baggage": "a=b"}
    found = await called(tmp_path, monkeypatch, "tracecontext,baggage,b3multi", sent, telemetry=True)
    context = {name.lower(): value for name, value in found["context"].items()}
    assert context == {
        "traceparent": f"00-{'0' * 16}{TRACE[16:]}-{SPAN}-00",
        "baggage": "a=b",
        "x-b3-traceid": "0" * 16 + TRACE[16:],
        "x-b3-spanid": SPAN,
        "x-b3-sampled": "0",
    }
    assert found["headers"]["traceparent"] == context["traceparent"]
    assert found["headers"]["x-b3-traceid"] == context["x-b3-traceid"]


SHORT = f"{SPAN}-{SPAN}-0"
W3C = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "x=1", "baggage": "a=b"}


@pytest.mark.parametrize(
    ("names", "sent", "extracted"),
    [
        ("", {"TraceParent": W3C["traceparent"]}, {"traceparent": W3C["traceparent"]}),
        ("tracecontext", W3C, {name: W3C[name] for name in ("traceparent", "tracestate")}),
        ("baggage", W3C, {"baggage": "a=b"}),
        ("none", W3C, {}),
        ("b3", W3C, {}),
        ("b3", {"b3": "0"}, {}),
        ("b3", {"b3": f"{TRACE}-{SPAN}"}, {"traceparent": f"00-{TRACE}-{SPAN}-00"}),
        ("b3", {"b3": f"{TRACE}-{SPAN}-d-{SPAN}"}, {"traceparent": f"00-{TRACE}-{SPAN}-01"}),
        ("b3", {"b3": f"{'0' * 32}-{SPAN}-1"}, {}),
        ("b3", {"b3": "nonsense"}, {}),
        (
            "b3",
            {"X-B3-TraceId": TRACE, "X-B3-SpanId": SPAN, "X-B3-Flags": "1"},
            {"traceparent": f"00-{TRACE}-{SPAN}-01"},
        ),
        ("tracecontext,b3", {**W3C, "b3": SHORT}, {"traceparent": f"00-{'0' * 16}{SPAN}-{SPAN}-00"}),
        ("b3,tracecontext", {"b3": SHORT, **W3C}, {"traceparent": W3C["traceparent"], "tracestate": "x=1"}),
    ],
)  # fmt: skip
def test_c15_what_is_taken_from_a_caller(names: str, sent: dict[str, str], extracted: dict[str, str]) -> None:
    assert propagators_from({"OTEL_PROPAGATORS": names}).extract(sent) == extracted


def test_c15_unknown_names_are_reported() -> None:
    read = propagators_from({"OTEL_PROPAGATORS": "xray, b3"})
    assert read.names == ("b3",)
    assert read.problem is not None
    assert "'xray'" in read.problem
    assert propagators_from({}).names == ("tracecontext", "baggage")
