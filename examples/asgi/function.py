"""An ASGI application in the worker's own process: no port, no second process, no proxy.

    nvcf deploy examples/asgi/function.py --name letters
    nvcf invoke letters --data 'some text'

It uses no framework, to show the whole interface. `serve(app)` accepts FastAPI and Starlette too.
"""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from nvcf_worker import serve

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Count the letters of a text that is sent by POST."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif scope["method"] == "POST":
        await count(scope, receive, send)
    else:
        await respond(send, 405, {"error": "send text by POST"})


async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Load the model. The instance takes requests after that."""
    await receive()
    scope["state"]["alphabet"] = frozenset(string.ascii_lowercase)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def count(scope: Scope, receive: Receive, send: Send) -> None:
    """Count while the body arrives. It may have any size."""
    found: Counter[str] = Counter()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        text = message["body"].decode("ascii", "ignore").lower()
        found.update(letter for letter in text if letter in scope["state"]["alphabet"])
        more = message["more_body"]
    request = scope["extensions"]["nvcf"]["request"]
    await respond(send, 200, {"letters": dict(sorted(found.items())), "request": request.id})


async def respond(send: Send, status: int, content: Any) -> None:
    """Send a JSON response."""
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    serve(app)
