"""C6, C7, C9 and the requests of C15: compressed answers, headers of any bytes, deep JSON, gzipped bodies."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.waiting import eventually

HANDLER = """
import gzip, zlib
from dataclasses import dataclass
from typing import Any
from nvcf_worker import App, Request, Response, SyncRequest, serve

def compressed(kind, text):
    data = text.encode()
    return {
        "gzip": gzip.compress(data),
        "deflate": zlib.compress(data),
        "raw": zlib.compress(data)[2:-4],
        "twice": gzip.compress(gzip.compress(data)),
        "members": gzip.compress(data[:5]) + gzip.compress(data[5:]),
    }.get(kind, data)

ENCODINGS = {"raw": "deflate", "twice": "gzip, gzip", "members": "x-gzip", "damaged": "gzip", "unknown": "br"}

async def main(request: Request):
    case = request.headers.get("x-case", "")
    if case == "headers":
        return Response("ok", headers={"x-echo": request.headers["x-text"]})
    if case == "json":
        found = await request.json()
        return {"type": type(found).__name__, "size": len(found)}
    if case:
        body = compressed(case, '{"detail": "what is wrong: \\u00e4\\u65e5"}')
        encoding = ENCODINGS.get(case, case)
        return Response(body, 409, {"content-encoding": encoding, "content-type": "application/json"})

@dataclass
class Typed:
    items: list[Any]
    depth: "Typed | None" = None

def typed(body: Typed):
    return len(body.items)

def blocking(request: SyncRequest):
    return len(request.json())

app = App()
app.route("/typed", methods=["POST"])(typed)
app.route("/blocking", methods=["POST"])(blocking)
app.route("/")(main)
serve(app)
"""

ASGI = """
from nvcf_worker import serve

async def application(scope, receive, send):
    if scope["type"] != "http":
        return
    await receive()
    value = dict(scope["headers"])[b"x-text"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-echo", value)]})
    await send({"type": "http.response.body", "body": b"ok"})

serve(asgi=application)
"""

SIDECAR = """
import socketserver, sys, threading
from nvcf_worker import sidecar

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        value = b""
        while (line := self.rfile.readline()) not in (b"\\r\\n", b""):
            if line.lower().startswith(b"x-text:"):
                value = line.partition(b":")[2].strip()
        head = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\nX-Echo: "
        self.wfile.write(head + value + b"\\r\\n\\r\\nok")

server = Server(("127.0.0.1", 0), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
sidecar(port=server.server_address[1])
"""

TEXTS = {
    "ascii": b"plain",
    "latin": "\u00e4".encode(),
    "beyond": "\u65e5\u672c\U0001f600".encode(),
    "looks encoded": "\u00c3\u00a4".encode(),
}


@dataclass
class Site:
    platform: Platform
    versions: dict[str, Version]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder: Path = tmp_path_factory.mktemp("platform")
    async with running_platform(folder) as platform:
        site = Site(platform, {})
        for kind, source in {"handler": HANDLER, "asgi": ASGI, "sidecar": SIDECAR}.items():
            file = folder / f"{kind}.py"
            file.write_text(source)
            version = site.versions[kind] = await platform.deployed_version(kind)
            worker = await platform.start_worker(version, file, concurrency=4)
            await eventually(lambda: "pulling requests" in worker.text(), "ready", story=worker.text)  # noqa: B023
        yield site


@dataclass
class Raw:
    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> bytes:
        return (
            next(line for line in self.head.split(b"\r\n") if line.lower().startswith(name + b":"))
            .partition(b":")[2]
            .strip()
        )


async def exchange(site: Site, head: list[bytes], body: bytes = b"", *, half_close: bool = False) -> Raw:
    """Send a request as bytes; return the response as bytes."""
    host, _, port = site.platform.gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    key = site.platform.keys["admin"].encode()
    lines = [*head, b"Host: x", b"Authorization: Bearer " + key, b"Content-Length: %d" % len(body)]
    if not half_close:
        lines.append(b"Connection: close")
    writer.write(b"\r\n".join([*lines, b"", b""]) + body)
    try:
        async with asyncio.timeout(30):
            if half_close:
                writer.write_eof()
            answer = await reader.read()
    finally:
        writer.close()
    head_bytes, _, content = answer.partition(b"\r\n\r\n")
    assert head_bytes, "no answer"
    return Raw(int(head_bytes.split(b" ")[1]), head_bytes, content)


def pexec(site: Site, kind: str = "handler", *headers: bytes) -> list[bytes]:
    return [b"POST " + site.versions[kind].pexec.encode() + b" HTTP/1.1", *headers]


def direct(site: Site, path: bytes, *headers: bytes) -> list[bytes]:
    version = site.versions["handler"]
    return [b"POST " + path + b" HTTP/1.1", b"function-id: " + version.function_id.encode(), *headers]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw", "twice", "members"])
@pytest.mark.asyncio(loop_scope="module")
async def test_c6_a_compressed_error_keeps_its_detail(site: Site, encoding: str) -> None:
    answer = await exchange(site, pexec(site, "handler", b"x-case: " + encoding.encode()))
    assert answer.status == 409
    problem = json.loads(answer.body)
    assert problem["detail"] == "what is wrong: \u00e4\u65e5"
    assert b"content-encoding" not in answer.head.lower()


@pytest.mark.parametrize(
    ("case", "why"), [("damaged", "not valid gzip"), ("unknown", "Content-Encoding 'br'")]
)
@pytest.mark.asyncio(loop_scope="module")
async def test_c6_the_problem_says_that_the_detail_cannot_be_read(site: Site, case: str, why: str) -> None:
    answer = await exchange(site, pexec(site, "handler", b"x-case: " + case.encode()))
    assert answer.status == 409
    problem = json.loads(answer.body)
    assert problem["title"] == "Conflict"
    assert why in problem["detail"]


@pytest.mark.parametrize("kind", ["handler", "asgi", "sidecar"])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.asyncio(loop_scope="module")
async def test_c7_header_bytes_go_through(site: Site, kind: str, text: str, whole: bool) -> None:
    headers = [b"x-case: headers", b"x-text: " + TEXTS[text]]
    if whole:
        headers.append(b"NVCF-FEATURE-ENABLE-ONLY-STREAM-FULL-REQUEST: true")
    answer = await exchange(site, pexec(site, kind, *headers), b"{}")
    assert (answer.status, answer.header(b"x-echo")) == (200, TEXTS[text])


@pytest.mark.parametrize("path", [b"/", b"/typed", b"/blocking"])
@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000])
@pytest.mark.asyncio(loop_scope="module")
async def test_c9_deep_json_is_refused(site: Site, path: bytes, body: bytes) -> None:
    answer = await exchange(site, direct(site, path, b"x-case: json"), body)
    assert answer.status in (400, 422), answer
    assert b"nested too deeply" in answer.body or b"not valid JSON" in answer.body


@pytest.mark.asyncio(loop_scope="module")
async def test_c9_deep_values_of_a_recursive_type(site: Site) -> None:
    body = b'{"items":[],"depth":' * 300 + b"null" + b"}" * 300
    answer = await exchange(site, direct(site, b"/typed"), body)
    assert answer.status in (200, 422), answer


@pytest.mark.parametrize("route", ["exec", "functions", "deployments"])
@pytest.mark.asyncio(loop_scope="module")
async def test_c9_the_gateway_refuses_deep_json(site: Site, route: str) -> None:
    version = site.versions["handler"]
    paths = {
        "exec": version.exec,
        "functions": "/v2/nvcf/functions",
        "deployments": f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}",
    }
    for body in (b"[" * 100_000, b'{"requestBody":' * 7_000 + b"1" + b"}" * 7_000):
        answer = await exchange(site, [b"POST " + paths[route].encode() + b" HTTP/1.1"], body)
        assert answer.status in (400, 422), answer


@pytest.mark.parametrize("path", [b"/", b"/typed", b"/blocking"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "x-gzip"])
@pytest.mark.asyncio(loop_scope="module")
async def test_c15_json_of_a_compressed_body(site: Site, path: bytes, encoding: str) -> None:
    text = json.dumps({"items": [1, 2, 3]}).encode()
    body = zlib.compress(text) if encoding == "deflate" else gzip.compress(text)
    head = direct(site, path, b"x-case: json", b"Content-Encoding: " + encoding.encode())
    answer = await exchange(site, head, body)
    assert answer.status == 200, answer


@pytest.mark.asyncio(loop_scope="module")
async def test_c15_bombs_and_other_encodings_are_refused(site: Site) -> None:
    bomb = gzip.compress(b" " * (65 * 1024 * 1024))
    for encoding, body, status in (
        (b"gzip", bomb, 413),
        (b"gzip, gzip", gzip.compress(bomb), 413),
        (b"br", b"{}", 415),
        (b"gzip, gzip, gzip", bomb, 415),
        (b"gzip", b"{}", 400),
        (b"gzip", gzip.compress(b"{}")[:-3], 400),
    ):
        head = direct(site, b"/blocking", b"Content-Encoding: " + encoding)
        assert (await exchange(site, head, body)).status == status, (encoding, status)


@pytest.mark.asyncio(loop_scope="module")
async def test_c15_absolute_form_of_a_request_target(site: Site) -> None:
    for prefix in (b"http://x", b"HTTP://x:80"):
        head = direct(site, prefix + b"/typed?a=1", b"Content-Type: application/json")
        answer = await exchange(site, head, b'{"items":[1]}')
        assert (answer.status, answer.body) == (200, b"1"), answer
    line, *rest = pexec(site, "handler", b"x-case: json")
    answer = await exchange(site, [line.replace(b"POST /", b"POST http://x/"), *rest], b"[]")
    assert answer.status == 200, answer
