"""Speaks a text word by word, as a language model would: an event stream from an async generator.

    nvcf deploy examples/stream/function.py --name stream
    nvcf invoke stream --data '{"text": "any words", "pace": 0.2}' --stream

Every event leaves the function when it is yielded; a caller that goes away ends the generator.
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
    """What the caller asked for; `pace` in seconds between two tokens."""

    text: str = DEFAULT_TEXT
    pace: float = DEFAULT_PACE


def parse_order(body: bytes) -> Order:
    """Raises `BadInput`, which the caller gets as a 400 with this sentence."""
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
    """Words with the white space before them: joined, they are the text again."""
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
    """The order is checked before the stream begins: afterwards there is no status to tell it with."""
    order = parse_order(await request.read())
    headers = {"cache-control": "no-store"}
    return Response(speak(order), headers=headers, media_type="text/event-stream")


if __name__ == "__main__":
    serve(handler)
