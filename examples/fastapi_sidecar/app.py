"""An ordinary FastAPI application that does not know the platform."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

app = FastAPI(title="Words")


class Text(BaseModel):
    text: str = Field(min_length=1)


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/")
async def count(text: Text) -> dict[str, int]:
    return {"words": len(text.text.split()), "characters": len(text.text)}


@app.post("/digest")
async def digest(request: Request) -> dict[str, str | int]:
    """Return the digest of a body of any size, read while it arrives."""
    found, size = hashlib.sha256(), 0
    async for chunk in request.stream():
        found.update(chunk)
        size += len(chunk)
    return {"sha256": found.hexdigest(), "bytes": size}


@app.get("/numbers/{limit}")
async def numbers(limit: int) -> StreamingResponse:
    if limit > 1000:
        raise HTTPException(422, "at most 1000")

    async def events() -> AsyncIterator[str]:
        for number in range(limit):
            yield f"data: {number}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
