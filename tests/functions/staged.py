"""Handlers that report progress and wait at gates: files named by the environment."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
from typing import Any

from nvcf_worker import Request


def note(**what: Any) -> None:
    """Append a line to the file that the test reads."""
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps({"pid": os.getpid(), **what}) + "\n")


async def passed(name: str) -> None:
    """Wait until the gate NAME is gone."""
    while pathlib.Path(f"{os.environ['GATE']}{name}").exists():  # noqa: ASYNC240 # a test's gate
        await asyncio.sleep(0.02)


async def staged(request: Request) -> dict[str, Any]:
    """Report progress after gate 1, respond with the size of the body after gate 2."""
    body = await request.read()
    note(event="start", id=request.id, attempt=request.attempt)
    await passed("1")
    if request.query.get("silent") is None and os.environ.get("SILENT") != "1":
        request.progress(40, {"part": "first"})
    await passed("2")
    note(event="end", id=request.id)
    return {"size": len(body), "attempt": request.attempt}
