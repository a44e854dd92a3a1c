"""A handler whose every execution can be told from every other, for tests that kill things."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from typing import Any

from nvcf_worker import Request


async def once(request: Request) -> dict[str, Any]:
    """Body `{"id", "seconds", "pad"}`; answers which execution this was, with `pad` bytes more.

    Every execution leaves a line in the file NOTES when it begins.
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
