"""One handler of each kind. All return the same: a JSON echo with the sum of `numbers`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from nvcf_worker import Request, SyncRequest


def _result(body: Any) -> dict[str, Any]:
    return {"id": body["id"], "sum": sum(body["numbers"])}


def plain(request: SyncRequest) -> dict[str, Any]:
    return _result(request.json())


async def coroutine(request: Request) -> dict[str, Any]:
    body = await request.json()
    await asyncio.sleep(0)
    return _result(body)


def generator(request: SyncRequest) -> Iterator[str]:
    text = json.dumps(_result(request.json()))
    for start in range(0, len(text), 7):
        yield text[start : start + 7]


async def async_generator(request: Request) -> AsyncIterator[str]:
    text = json.dumps(_result(await request.json()))
    for start in range(0, len(text), 7):
        yield text[start : start + 7]
