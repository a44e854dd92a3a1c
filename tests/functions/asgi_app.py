"""An ASGI application without a framework: echo, streams, state, errors."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nvcf_worker import serve

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

NOTES: list[str] = []


def note(text: str) -> None:
    """Store a note, and append it to the file NOTES for tests that run a process."""
    NOTES.append(text)
    if path := os.environ.get("NOTES"):
        with Path(path).open("a") as file:
            file.write(text + "\n")


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Route by path."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    path = scope["path"].removeprefix(scope["root_path"])
    await ROUTES.get(path, describe)(scope, receive, send)


async def lifespan(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            scope["state"]["model"] = "loaded"
            note("startup")
            await send({"type": "lifespan.startup.complete"})
        else:
            note("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return


async def read(receive: Receive) -> bytes:
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    return body


async def respond(send: Send, body: bytes, status: int = 200, kind: bytes = b"application/json") -> None:
    headers = [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def describe(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Respond with the scope."""
    shown = {key: value for key, value in scope.items() if key not in ("headers", "extensions", "state")}
    shown["raw_path"] = scope["raw_path"].decode("latin-1")
    shown["query_string"] = scope["query_string"].decode("latin-1")
    shown["headers"] = [[name.decode(), value.decode()] for name, value in scope["headers"]]
    shown["model"] = scope.get("state", {}).get("model")
    shown["request"] = scope["extensions"]["nvcf"]["request"].id
    shown["body"] = (await read(receive)).decode()
    await respond(send, json.dumps(shown).encode(), 201)


async def echo_stream(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Send the head at once, and each chunk as it arrives."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    )
    more = True
    while more:
        message = await receive()
        more = message["more_body"]
        if message["body"]:
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})
    await send({"type": "http.response.body"})


async def endless(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Send chunks until `receive` or `send` reports that the caller is gone."""
    await read(receive)
    listening = asyncio.ensure_future(receive())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        while not listening.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        note(listening.result()["type"])
    except OSError as error:
        note(type(error).__name__)
    finally:
        listening.cancel()


async def waits(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Send nothing until the caller is gone."""
    await read(receive)
    note("waiting")
    note((await receive())["type"])


async def stubborn(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Never check whether the caller is gone."""
    note("stubborn")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note("cancelled")
        raise


async def background(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Go on after the response."""
    await respond(send, b"{}")
    await asyncio.sleep(0.2)
    note("background done")


async def raises(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    raise ValueError("secret inside")


async def raises_late(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"some", "more_body": True})
    raise ValueError("secret inside")


async def silent(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Return without a response."""


async def large(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Send a body of known length in pieces."""
    headers = [(b"content-length", b"3000000")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(30):
        await send({"type": "http.response.body", "body": b"y" * 100_000, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


ROUTES = {
    "/stream": echo_stream,
    "/endless": endless,
    "/waits": waits,
    "/stubborn": stubborn,
    "/background": background,
    "/raises": raises,
    "/raises-late": raises_late,
    "/silent": silent,
    "/large": large,
}

if __name__ == "__main__":
    serve(app)
