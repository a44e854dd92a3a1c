"""Stream a text word by word, as a language model does: an event stream from an async generator.

    nvcf deploy examples/stream/function.py --name stream
    nvcf invoke stream --data '{"text": "any words", "pace": 0.2}' --stream

Every event is sent when it is yielded. The generator ends when its caller disconnects.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from nvcf_worker import BadInput, Request, Response, serve

DEFAULT_TEXT = (
    "Each word of this sentence left the function the moment it was ready, "
    "and reached you through the gateway before the next one was thought of."
)
DEFAULT_PACE = 0.12
MAX_TEXT = 20_000
MAX_PACE = 10.0


@dataclass(frozen=True, slots=True)
class Order:
    """The text of a request, and `pace`: the seconds between two tokens."""

    text: str = DEFAULT_TEXT
    pace: float = DEFAULT_PACE


def parse_order(body: bytes) -> Order:
    """Return the order in a body. Raises `BadInput`, which the caller gets as a 400 with its text."""
    if not body.strip():
        return Order()
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise BadInput("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise BadInput("the body must be a JSON object")
    text = fields.get("text", DEFAULT_TEXT)
    pace = fields.get("pace", DEFAULT_PACE)
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
        raise BadInput(f"text must be a string of 1 to {MAX_TEXT:,} characters")
    if isinstance(pace, bool) or not isinstance(pace, int | float) or not 0 <= pace <= MAX_PACE:
        raise BadInput(f"pace must be a number of seconds from 0 to {MAX_PACE:.0f}")
    return Order(text, float(pace))


def tokens(text: str) -> list[str]:
    """Split a text into words, each with the white space before it."""
    return re.findall(r"\s*\S+|\s+$", text)


def event(name: str, fields: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode()


async def speak(order: Order) -> AsyncIterator[bytes]:
    started = time.perf_counter()
    words = tokens(order.text)
    for index, word in enumerate(words):
        if index:
            await asyncio.sleep(order.pace)
        elapsed = round((time.perf_counter() - started) * 1000, 1)
        yield event("token", {"index": index, "of": len(words), "token": word, "sentAtMs": elapsed})
    yield event("done", {"tokens": len(words), "seconds": round(time.perf_counter() - started, 3)})


async def handler(request: Request) -> Response:
    """Check the order before the stream begins, because the status cannot change afterwards."""
    order = parse_order(await request.read())
    headers = {"cache-control": "no-store"}
    return Response(speak(order), headers=headers, media_type="text/event-stream")


if __name__ == "__main__":
    serve(handler)
