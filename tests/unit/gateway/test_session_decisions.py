"""Decisions of sessions, without I/O: routing, refusals, first bytes, tokens."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.grpc_status import grpc_status, is_grpc, percent_encode
from nvcf_gateway.sessions.h1 import request_headers, response_headers, wants_upgrade
from nvcf_gateway.sessions.h2_call import H2Call
from nvcf_gateway.sessions.h2_protocol import ResetBucket
from nvcf_gateway.sessions.h2_websocket import H2WebSocket, accept_key
from nvcf_gateway.sessions.listener import PREFACE, is_http2
from nvcf_gateway.sessions.routing import SessionCall, read_call, response_additions
from nvcf_gateway.sessions.tunnels import TunnelTable, check_target, read_credentials, tunnel_error
from nvcf_proto.h1 import RequestHead

F = "11111111-1111-4111-8111-111111111111"
V = "22222222-2222-4222-8222-222222222222"
Q = "33333333-3333-4333-8333-333333333333"
PROTOCOLS = "Sec-WebSocket-Protocol"


def bearer(call: SessionCall) -> str | None:
    return call.authorization.get("Authorization")


def test_routing_headers_are_read_and_not_passed_on() -> None:
    call = read_call(
        [
            ("Authorization", "Bearer key"),
            ("Function-Id", F.upper()),
            ("function-version-id", V),
            ("NVCF-SUB", "somebody else"),
            ("nvcf-ncaid", "another account"),
            ("x-own", "1"),
            ("cookie", "a=b"),
        ],
        "host",
    )
    assert (call.target.function_id, call.target.version_id) == (F, V)
    assert bearer(call) == "Bearer key"
    assert call.headers == [("x-own", "1"), ("cookie", "a=b")]
    assert (call.request_id, call.insists, call.accepted) == (None, False, None)


@pytest.mark.parametrize("credential", ["key", "Bearer.key", "Bearer%20key", "bearer.key"])
def test_a_browser_routes_by_protocol_entries(credential: str) -> None:
    offered = f"authorization.{credential}, function-id.{F}, v1.json, chat"
    call = read_call([(PROTOCOLS, offered)], "")
    assert call.target.function_id == F
    assert bearer(call) == "Bearer key"
    assert call.headers == [(PROTOCOLS, "v1.json, chat")]
    assert call.accepted is None


def test_a_key_with_dots_is_split_at_the_first_only() -> None:
    call = read_call([(PROTOCOLS, f"function-id.{F}"), (PROTOCOLS, "authorization.a.b.c")], "")
    assert bearer(call) == "Bearer a.b.c"
    assert call.headers == []
    assert call.accepted == f"function-id.{F}"


def test_real_headers_win_over_protocol_entries() -> None:
    call = read_call(
        [
            (PROTOCOLS, f"function-id.{V}, authorization.wrong"),
            ("function-id", F),
            ("authorization", "Bearer k"),
        ],
        "",
    )
    assert call.target.function_id == F
    assert bearer(call) == "Bearer k"


def test_the_host_name_routes_too() -> None:
    call = read_call([], f"{V}.{F}.example.org:443")
    assert (call.target.function_id, call.target.version_id) == (F, V)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("nvcf-request-id", Q)], (Q, True)),
        ([("NVCF-REQID", Q)], (Q, True)),
        ([(PROTOCOLS, f"nvcf-request-id.{Q}")], (Q, True)),
        ([("cookie", f"a=b; nvcf-request-id={Q}")], (Q, False)),
        ([("cookie", "nvcf-request-id=nonsense")], (None, False)),
        ([("nvcf-request-id", V), (PROTOCOLS, f"nvcf-request-id.{Q}")], (V, True)),
        ([("cookie", f"nvcf-request-id={V}"), (PROTOCOLS, f"nvcf-request-id.{Q}")], (Q, True)),
    ],
)
def test_the_old_session_is_named_by_header_then_protocol_then_cookie(
    headers: list[tuple[str, str]], expected: tuple[str | None, bool]
) -> None:
    call = read_call([("function-id", F), *headers], "")
    assert (call.request_id, call.insists) == expected


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("function-id", "x")],
        [("function-version-id", V)],
        [("function-id", F), ("nvcf-request-id", "x")],
        [(PROTOCOLS, "function-id.x")],
    ],
)
def test_a_call_that_names_no_function_is_refused(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(HttpProblem) as raised:
        read_call(headers, "")
    assert raised.value.status == 400


@given(st.lists(st.tuples(st.sampled_from(["cookie", PROTOCOLS, "function-id", "x"]), st.text(max_size=60))))
def test_no_header_text_breaks_routing(headers: list[tuple[str, str]]) -> None:
    with contextlib.suppress(HttpProblem):
        call = read_call(headers, "")
        assert all(name.lower() != "function-id" for name, _ in call.headers)


@pytest.mark.parametrize(
    ("http", "grpc"),
    [(400, 3), (401, 16), (403, 7), (404, 5), (429, 8), (503, 14), (504, 4), (501, 12), (500, 13), (418, 2)],
)
def test_refusals_have_a_grpc_status(http: int, grpc: int) -> None:
    assert grpc_status(http) == grpc


def test_grpc_is_known_by_its_media_type() -> None:
    assert is_grpc("application/grpc")
    assert is_grpc("application/grpc+proto")
    assert not is_grpc("application/json")
    assert not is_grpc("")


@given(st.text())
def test_a_grpc_message_survives_its_encoding(text: str) -> None:
    encoded = percent_encode(text)
    assert encoded.isascii()
    assert encoded.isprintable() or not encoded
    assert unquote_to_bytes(encoded) == text.encode()


@given(st.binary(max_size=40))
def test_http2_is_known_by_its_first_bytes(first: bytes) -> None:
    if first.startswith(PREFACE):
        assert is_http2(first) is True
    else:
        assert is_http2(first) is (None if PREFACE.startswith(first) else False)
    assert is_http2(PREFACE + first) is True


@pytest.mark.parametrize(
    ("headers", "upgrade"),
    [
        ([("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket")], "websocket"),
        ([("Connection", "keep-alive"), ("Upgrade", "websocket")], None),
        ([("Connection", "upgrade")], None),
        ([("Connection", "upgrade, http2-settings"), ("Upgrade", "h2c")], None),
        ([("Connection", "upgrade"), ("Upgrade", "own/1")], "own/1"),
    ],
)
def test_upgrades_are_recognised(headers: list[tuple[str, str]], upgrade: str | None) -> None:
    assert wants_upgrade(headers) == upgrade


def test_hop_by_hop_headers_are_the_connections_own() -> None:
    call = read_call(
        [
            ("function-id", F),
            ("Connection", "x-hop, Upgrade"),
            ("Upgrade", "websocket"),
            ("x-hop", "1"),
            ("a", "b"),
        ],
        "",
    )
    assert request_headers(call, [("nvcf-reqid", Q)], "websocket") == [
        ("a", "b"),
        ("nvcf-reqid", Q),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
    ]
    own = response_additions(Q, secure=True)
    assert own[1][1].endswith("; Secure")
    own = response_additions(Q, secure=False)
    assert "Secure" not in own[1][1]
    switched = response_headers([("Upgrade", "websocket"), ("c", "d")], own, switched=True, accepted="own")
    assert ("Sec-WebSocket-Protocol", "own") in switched
    assert ("Upgrade", "websocket") in switched
    assert ("nvcf-reqid", Q) in switched


def head(method: str, target: str, *headers: tuple[str, str]) -> RequestHead:
    return RequestHead(method, target, list(headers))


@pytest.mark.parametrize("target", ["/v1/proxy", "/v1/proxy?x=1", "host:80", "http://host/v1/proxy"])
def test_workers_connect_in_any_form(target: str) -> None:
    check_target(head("CONNECT", target))


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("GET", "/v1/proxy", 405), ("CONNECT", "/", 404), ("CONNECT", "/v2", 404)],
)
def test_other_requests_are_refused_at_the_tunnel_endpoint(method: str, target: str, status: int) -> None:
    with pytest.raises(HttpProblem) as raised:
        check_target(head(method, target))
    assert raised.value.status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([("Authorization", "Basic x"), ("X-Request-ID", Q)], 401),
        ([("Authorization", "Bearer t")], 400),
        ([("Authorization", "Bearer t"), ("X-Request-ID", "x")], 400),
    ],
)
def test_a_tunnel_needs_token_and_id(headers: list[tuple[str, str]], status: int) -> None:
    with pytest.raises(HttpProblem) as raised:
        read_credentials(head("CONNECT", "/v1/proxy", *headers))
    assert raised.value.status == status


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("501 no port", (501, "no port")),
        ("x", (502, "the worker cannot serve the session")),
        ("200 ok", (502, "ok")),
    ],
)
def test_a_workers_reason_is_read(text: str, expected: tuple[int, str]) -> None:
    problem = tunnel_error([("nvcf-tunnel-error", text)])
    assert problem is not None
    assert (problem.status, problem.problem.detail) == expected
    assert tunnel_error([]) is None


async def test_a_token_is_good_once_and_for_its_request_only() -> None:
    tunnels = TunnelTable()
    with tunnels.expect(Q) as expected:
        assert tunnels.claim(expected.token, F) is None
        assert tunnels.claim("other", Q) is None
        assert tunnels.claim(expected.token, Q) is expected
        assert tunnels.claim(expected.token, Q) is None
    with tunnels.expect(Q) as second:
        assert second.token != expected.token
    assert tunnels.claim(second.token, Q) is None


def test_resets_are_bounded_and_forgiven() -> None:
    bucket = ResetBucket(10.0, burst=3, per_second=2)
    assert [bucket.acquire(10.0) for _ in range(5)] == [True, True, True, False, False]
    assert [bucket.acquire(11.0) for _ in range(3)] == [True, True, False]
    assert [bucket.acquire(99.0) for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.floats(0, 1, allow_nan=False), max_size=60))
def test_no_more_resets_pass_than_the_bounds_allow(pauses: list[float]) -> None:
    now, passed = 0.0, 0
    bucket = ResetBucket(now, burst=5, per_second=3)
    for pause in pauses:
        now += pause
        passed += bucket.acquire(now)
    assert passed <= 5 + 3 * now + 1e-6


def test_the_handshake_s_proof_is_that_of_the_standard() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "RFC 6455 section 1.3"


class _StuckWire:
    """A function that reads nothing."""

    def write(self, data: bytes) -> None:
        self.written = data

    async def drain(self) -> None:
        await asyncio.Event().wait()


class _CallersEndpoint:
    """Notes what the caller may send again."""

    def __init__(self) -> None:
        self.credited = 0

    def credit(self, stream_id: int, size: int) -> None:
        self.credited += size


async def test_a_websocket_that_is_cut_off_gives_all_of_its_window_back() -> None:
    end, wire = _CallersEndpoint(), _StuckWire()
    call = H2Call(end, 1, grpc=False, bodiless=False)  # type: ignore[arg-type]
    socket = H2WebSocket(call, None, None, lambda _: None)  # type: ignore[arg-type]
    call.request_data(b"a" * 100)
    call.request_data(b"b" * 10)
    upward = asyncio.create_task(socket._pass_upward(wire))  # type: ignore[arg-type]
    while not hasattr(wire, "written"):
        await asyncio.sleep(0)
    upward.cancel()
    await asyncio.wait({upward})
    call.discard_request()
    assert end.credited == 110
