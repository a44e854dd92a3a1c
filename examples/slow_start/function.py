"""Behave like a model that loads slowly and responds slowly, to show scaling.

    nvcf up --clusters 2 --gpus 4
    nvcf deploy examples/slow_start/function.py --name slow --min 0 --max 4 --gpu SIM
    nvcf invoke slow --data '{"seconds": 0.5}'
    nvcf scaling slow

LOAD_SECONDS is the time that the model needs to load, once in each instance (default 1).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

from nvcf_worker import BadInput, Request, serve

DEFAULT_SECONDS = 0.2
MAX_SECONDS = 60.0


def parse_seconds(body: bytes) -> float:
    """Return the time that the response takes. Raises `BadInput`, which the caller gets as a 400."""
    if not body.strip():
        return DEFAULT_SECONDS
    try:
        seconds = json.loads(body)["seconds"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadInput('the body must be like {"seconds": 0.5}') from None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS:
        raise BadInput(f"seconds must be a number from 0 to {MAX_SECONDS:.0f}")
    return float(seconds)


class Model:
    """Respond after some time with the instance and its GPU."""

    def setup(self) -> None:
        """Load the model. The worker pulls no request before this returns."""
        time.sleep(float(os.environ.get("LOAD_SECONDS", "1")))

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Wait, and respond."""
        seconds = parse_seconds(await request.read())
        await asyncio.sleep(seconds)
        return {
            "seconds": seconds,
            "instance": os.environ.get("INSTANCE_ID", ""),
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        }


handler = Model

if __name__ == "__main__":
    serve(Model)
