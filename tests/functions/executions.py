"""A handler whose executions have ids, for tests that kill processes."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from typing import Any

from nvcf_worker import Request


async def once(request: Request) -> dict[str, Any]:
    """Return the id of this execution and `pad` bytes, for the body `{"id", "seconds", "pad"}`.

    Every execution appends a line to the file NOTES when it begins.
    """
    body = await request.json()
    execution = uuid.uuid4().hex
    line = json.dumps({"id": body["id"], "execution": execution, "pid": os.getpid()}) + "\n"
    # One write in append mode: lines of several processes do not mix.
    descriptor = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    await asyncio.sleep(body.get("seconds", 0))
    return {"id": body["id"], "execution": execution, "pad": "x" * body.get("pad", 0)}
