"""Stands in for a model that takes a while to load and a while to answer: something to watch scaling with.

    nvcf up --clusters 2 --gpus 4
    nvcf deploy examples/slow_start/function.py --name slow --min 0 --max 4 --gpu SIM
    nvcf invoke slow --data '{"seconds": 0.5}'
    nvcf scaling slow

LOAD_SECONDS is how long the model "loads", once in each instance (default 1).
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
    """How long the answer is to take. Raises `BadInput`, which the caller gets as a 400."""
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
    """Answers after a while, from which instance and GPU."""

    def setup(self) -> None:
        """Load: no request is asked for before this is through."""
        time.sleep(float(os.environ.get("LOAD_SECONDS", "1")))

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One answer."""
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
