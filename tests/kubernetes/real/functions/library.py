"""A function that serves itself with the worker library. It echoes like `plain`."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from nvcf_worker import Request

VERSION = os.environ.get("FUNCTION_VERSION", "1")


async def handler(request: Request) -> dict[str, Any]:
    """Do what the body says, and answer with it and the pod's name."""
    body = await request.json()
    await asyncio.sleep(body.get("sleep", 0))
    if "exit" in body:
        os._exit(body["exit"])
    return {"body": body, "pod": socket.gethostname(), "version": VERSION, "mode": "library"}
