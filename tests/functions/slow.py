"""Slow handlers that write what happens to them to a file."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from nvcf_worker import Request, SyncRequest


def note(**what: Any) -> None:
    """Append a line to the file that the test reads."""
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps({"pid": os.getpid(), **what}) + "\n")


async def hold(request: Request) -> dict[str, Any]:
    """Respond after the file GATE is gone, or at once if it does not exist."""
    body = await request.json()
    note(event="start", id=body["id"])
    while os.path.exists(os.environ["GATE"]):  # noqa: ASYNC240 # a test's gate, checked rarely
        await asyncio.sleep(0.05)
    note(event="end", id=body["id"])
    return {"id": body["id"], "pid": os.getpid()}


async def until_cancelled(request: Request) -> str:
    if request.query.get("quick"):
        return "quick"
    note(event="start")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note(event="cancelled")
        raise
    return "never"


async def async_stream(request: Request) -> AsyncIterator[bytes]:
    if request.query.get("quick"):
        yield b"quick"
        return
    note(event="start")
    try:
        while True:
            yield b"x" * 1000
            await asyncio.sleep(0.02)
    finally:
        note(event="closed")


def sync_stream(request: SyncRequest) -> Iterator[bytes]:
    if request.query.get("quick"):
        yield b"quick"
        return
    note(event="start")
    try:
        while True:
            yield b"x" * 1000
            time.sleep(0.02)
    finally:
        note(event="closed", thread=threading.current_thread().name)


def endless(request: SyncRequest) -> Iterator[bytes]:
    """Yield as much as the reader takes."""
    block = bytes(64 * 1024)
    while True:
        yield block


async def async_endless(request: Request) -> AsyncIterator[bytes]:
    block = bytes(64 * 1024)
    while True:
        yield block


async def count_body(request: Request) -> dict[str, int]:
    """Read the body to its end, and wait at the gate after the first chunk."""
    size = 0
    first = True
    async for chunk in request.stream():
        size += len(chunk)
        if first:
            first = False
            note(event="start")
            while os.path.exists(os.environ["GATE"]):  # noqa: ASYNC240
                await asyncio.sleep(0.05)
    return {"size": size, "pid": os.getpid()}
