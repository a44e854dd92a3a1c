"""A function that answers like an engine with OpenAI's API, and says what it was asked."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from nvcf_worker import HTTPError, Request, Response

WORDS = ("the ", "quick ", "brown ", "fox")


def _chunk(body: dict[str, Any], delta: dict[str, Any], finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    value = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    return f"data: {json.dumps({**value, 'choices': [choice]})}\n\n"


async def _words(body: dict[str, Any]) -> AsyncIterator[str]:
    for word in WORDS:
        if word == body.get("die_before"):
            yield 'data: {"half'
            await asyncio.sleep(0.5)
            os._exit(1)
        yield _chunk(body, {"role": "assistant", "content": word})
    yield _chunk(body, {}, "stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        value = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        yield f"data: {json.dumps({**value, 'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"


async def engine(request: Request) -> Any:
    """Serve all routes; members that no engine has say what is to go wrong."""
    raw = await request.read()
    body = json.loads(raw)
    if "fail_with" in body:
        raise HTTPError(body["fail_with"], "the prompt is too odd")
    if body.get("stream"):
        return Response(_words(body), headers={"Content-Type": "text/event-stream"})
    if request.path == "/v1/embeddings":
        found = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return {"object": "list", "model": body["model"], "data": [found], "usage": usage}
    if body.get("echo"):
        return {"path": request.path, "raw": raw.decode(), "length": request.headers.get("content-length")}
    message = {"role": "assistant", "content": "".join(WORDS)}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    kind = {"id": "c1", "created": 1, "model": body["model"], "usage": usage}
    if request.path == "/v1/completions":
        choice = {"index": 0, "text": "".join(WORDS), "finish_reason": "stop"}
        return {**kind, "object": "text_completion", "choices": [choice]}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {**kind, "object": "chat.completion", "choices": [choice]}
