"""The public surface: imports, handlers, results, headers, the command's target, tokens on disk."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

import nvcf_worker
from nvcf_proto.errors import H1Error
from nvcf_worker import Response, errors
from nvcf_worker.__main__ import split_target
from nvcf_worker.control.registration import CachedToken, load_token, store_token
from nvcf_worker.errors import HandlerError
from nvcf_worker.exchange.post import pieces
from nvcf_worker.function.handlers import Kind, classify
from nvcf_worker.function.headers import Headers, MultiMap
from nvcf_worker.function.response import encode_item, item_media_type, reply_of
from nvcf_worker.queue.puller import read_limits


def test_the_import_is_light() -> None:
    heavy = ("grpc", "aiohttp", "nats", "google.protobuf", "opentelemetry", "asyncio.sslproto")
    script = f"import sys, nvcf_worker, nvcf_worker.errors; print([n for n in {heavy!r} if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    for name in nvcf_worker.__all__:
        assert getattr(nvcf_worker, name) is not None
    assert set(nvcf_worker.__all__) <= set(dir(nvcf_worker))
    with pytest.raises(AttributeError):
        _ = nvcf_worker.nothing


@pytest.mark.parametrize("name", ["BatchError", "BodyUnavailable", "WorkerError"])
def test_names_of_an_earlier_release_can_be_had_with_a_warning(name: str) -> None:
    assert name not in nvcf_worker.__all__
    with pytest.warns(DeprecationWarning, match=r"from nvcf_worker\.errors"):
        assert getattr(nvcf_worker, name) is getattr(errors, name)


def test_an_http_error_has_any_error_status() -> None:
    error = nvcf_worker.HTTPError(429, "slow down", headers={"Retry-After": "5"})
    assert (error.status, error.title, error.detail) == (429, "Too Many Requests", "slow down")
    assert error.headers == [("Retry-After", "5")]
    with pytest.raises(ValueError, match="400 to 599"):
        nvcf_worker.HTTPError(200)


def test_an_error_takes_numbers_as_header_values_and_only_integers_as_status() -> None:
    assert nvcf_worker.HTTPError(429, "later", headers={"Retry-After": 5}).headers == [("Retry-After", "5")]
    assert type(nvcf_worker.HTTPError(HTTPStatus.NOT_FOUND).status) is int
    wrong: Any = 404.0
    with pytest.raises(TypeError, match="must be an integer"):
        nvcf_worker.HTTPError(wrong)
    with pytest.raises(TypeError, match="must be an integer"):
        nvcf_worker.Response("x", wrong)


@pytest.mark.parametrize(
    ("name", "right"), [("set_up", "setup"), ("tearDown", "teardown"), ("health_check", "health")]
)
def test_a_hook_with_nearly_the_right_name_is_warned_about(name: str, right: str) -> None:
    def call(self: Any, request: Any) -> Any: ...

    kind = type("Model", (), {name: lambda self: None, "__call__": call})
    with pytest.warns(UserWarning, match=f"Model.{name} is not called by the worker; name it {right}"):
        classify(kind)
    with pytest.warns(UserWarning, match=f"name it {right}"):
        classify(kind())


def plain(request: Any) -> Any: ...
async def coroutine(request: Any) -> Any: ...
def generator(request: Any) -> Iterator[Any]:
    yield 1


async def async_generator(request: Any) -> AsyncIterator[Any]:
    yield 1


class Both:
    async def __call__(self, request: Any) -> Any: ...
    def method(self, request: Any) -> Any: ...
    async def coroutine(self, request: Any) -> Any: ...


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (plain, Kind.SYNC),
        (generator, Kind.SYNC),
        (coroutine, Kind.ASYNC),
        (async_generator, Kind.ASYNC),
        (Both(), Kind.ASYNC),
        (Both().method, Kind.SYNC),
        (Both().coroutine, Kind.ASYNC),
        (functools.partial(functools.partial(coroutine)), Kind.ASYNC),
        (functools.partial(Both()), Kind.ASYNC),
        (lambda request: None, Kind.SYNC),
        (repr, Kind.SYNC),
    ],
)
def test_kinds_of_handlers(handler: Any, kind: Kind) -> None:
    assert classify(handler).kind is kind


@pytest.mark.parametrize("handler", [3, None, int, lambda: None, lambda a, b: None])
def test_what_cannot_serve(handler: Any) -> None:
    with pytest.raises(HandlerError):
        classify(handler)


@pytest.mark.parametrize("result", [object(), {"a": float("nan")}, {1 + 2j}, Response(object())])
def test_results_that_cannot_be_sent(result: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        reply_of(result, None)


@pytest.mark.parametrize("headers", [{"a": "b\r\nc"}, {"a b": "c"}, {"": "c"}, {"\u20ac": "a"}])
def test_headers_that_cannot_be_sent(headers: dict[str, str]) -> None:
    with pytest.raises(H1Error):
        reply_of(Response("x", headers=headers), None)


def test_header_values_are_utf_8() -> None:
    reply = reply_of(Response("x", headers={"a": "\u20ac"}), None)
    assert dict(reply.headers)["a"].encode("latin-1") == "\u20ac".encode()
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        reply_of(Response("x", headers={"a": "\ud800"}), None)


def test_a_status_must_be_final() -> None:
    for status in (0, 100, 199, 600):
        with pytest.raises(ValueError, match="status"):
            Response(status=status)


def test_items_of_a_stream() -> None:
    assert encode_item(b"a") == b"a"
    assert encode_item("ü") == "ü".encode()
    assert encode_item({"a": 1}) == b'{"a":1}\n'
    assert encode_item(bytearray(b"x")) == encode_item(memoryview(b"x")) == b"x"
    assert [item_media_type(item) for item in (b"", "", 1)] == [
        "application/octet-stream",
        "text/plain; charset=utf-8",
        "application/x-ndjson",
    ]


def test_a_media_type_wins_over_a_header() -> None:
    reply = reply_of(Response("x", headers={"Content-Type": "a/b"}, media_type="c/d"), "e/f")
    assert reply.headers == [("content-type", "c/d")]
    reply = reply_of(Response("x", headers={"Content-Type": "a/b", "Content-Length": "7"}), "e/f")
    assert reply.headers == [("Content-Type", "a/b")]


def test_headers_have_no_case_and_many_values() -> None:
    headers = Headers([("A", "1"), ("a", "2"), ("B", "3")])
    assert headers["a"] == headers["A"] == "1"
    assert headers.get_all("A") == ["1", "2"]
    assert (list(headers), len(headers), "b" in headers) == (["a", "b"], 2, True)
    assert headers.get("x") is None
    assert headers.get_all("x") == []
    assert MultiMap([("A", "1"), ("a", "2")])["a"] == "2"


def test_large_bodies_are_cut_and_small_ones_are_joined() -> None:
    assert list(pieces(b"head", b"body")) == [b"headbody"]
    cut = list(pieces(b"head", b"x" * 600_000))
    assert cut[0] == b"head"
    assert b"".join(cut) == b"head" + b"x" * 600_000
    assert max(len(piece) for piece in cut) == 256 * 1024


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("f.py", ("f.py", None)),
        ("f.py:name", ("f.py", "name")),
        ("C:f.py", ("C:f.py", None)),
        ("dir:x/f.py:name", ("dir:x/f.py", "name")),
        ("f.py:", ("f.py:", None)),
        (":name", (":name", None)),
    ],
)
def test_the_commands_target(target: str, parts: tuple[str, str | None]) -> None:
    assert split_target(target) == parts


def test_a_cached_token_without_an_end_and_one_with_an_impossible_one(tmp_path: Path) -> None:
    """Go writes a time that is not known as the first day of the year 1."""
    path = tmp_path / "nvcf-worker-token.json"
    path.write_text('{"access_token": "t", "token_type": "Bearer", "expiry": "0001-01-01T00:00:00Z"}')
    cached = load_token(path)
    assert cached is not None
    assert cached.usable("any", 1795514400.0)
    store_token(path, CachedToken("t", 1e15, "i"))
    assert load_token(path) == CachedToken("t", None, "i")


def test_the_token_cache(tmp_path: Path) -> None:
    path = tmp_path / "nvcf-worker-token.json"
    assert load_token(path) is None
    expires_at = round(time.time()) + 100.0
    store_token(path, CachedToken("t", expires_at, "i"))
    assert path.stat().st_mode & 0o777 == 0o600
    cached = load_token(path)
    assert cached == CachedToken("t", expires_at, "i")
    assert cached.usable("i", expires_at - 1)
    assert not cached.usable("i", expires_at)
    assert not cached.usable("other", 0.0)
    for text in ("", "{", "[]", "{}", '{"access_token": "t", "expiry": "soon"}', "3"):
        path.write_text(text)
        assert load_token(path) is None
    # As a container beside the worker writes it in Go.
    path.write_text('{"access_token":"t","expiry":"2026-11-24T10:00:00.123456789Z"}')
    cached = load_token(path)
    assert cached is not None
    assert cached.expires_at == pytest.approx(1795514400.123456)
    assert cached.usable("any", 1795514400.0)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b'{"config": {"ack_wait": 6000000000}}', (6.0, 0)),
        (b'{"config": {"max_deliver": 5}}', (30.0, 5)),
        (b'{"config": {"max_deliver": -1}}', (30.0, 0)),
        (b'{"error": {"code": 404, "err_code": 10014, "description": "consumer not found"}}', None),
    ],
)
def test_the_limits_are_read_from_the_consumer(answer: bytes, expected: tuple[float, int] | None) -> None:
    assert read_limits(answer) == expected


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"error": {"code": 503, "description": "no"}}'])
def test_other_answers_are_no_consumer(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        read_limits(answer)
