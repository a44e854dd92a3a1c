"""Upload results to the platform's own store (protocol.md, section 12.7)."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any, Self

import aiohttp

from nvcf_worker.control.tls import client_context
from nvcf_worker.process.durations import Backoff
from nvcf_worker.tasks.s3_store import StoreError

log = logging.getLogger("nvcf_worker")

AT_ONCE = 4
TRIES = 8
BACKOFF = Backoff(first=0.5, limit=20.0)
SILENCE_SECONDS = 120.0
_LATER = frozenset((408, 425, 429, 500, 502, 503, 504))


class PlatformStore:
    """The files of one task. `token` returns the present token of the task's worker."""

    def __init__(self, address: str, task_id: str, token: Callable[[], str]) -> None:
        base = address if address.startswith(("http://", "https://")) else f"https://{address}"
        self._url = f"{base.rstrip('/')}/v1/nvct/uploads/{task_id}"
        self._token = token
        self._files: dict[str, dict[str, Any]] = {}
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=SILENCE_SECONDS)
        connector = aiohttp.TCPConnector(ssl=client_context())
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def put(self, path: Path, name: str) -> int:
        """Upload a file under a name; return its size in bytes. Raises StoreError and OSError."""
        async with self._gate:
            size, sha256 = await asyncio.to_thread(_digest, path)
            asset = await self._send(name, lambda: path.open("rb"))
        self._files[name] = {"path": name, "size": size, "sha256": sha256, "assetId": asset}
        return size

    async def publish(self) -> None:
        """Write the list of the files, by which they are found. Raises StoreError."""
        content = json.dumps({"files": [self._files[name] for name in sorted(self._files)]}).encode()
        await self._send("", lambda: io.BytesIO(content))

    async def _send(self, name: str, content: Callable[[], IO[bytes]]) -> str:
        """Upload under a name and return the id of the asset."""

        async def once(session: aiohttp.ClientSession) -> str:
            headers = {"Authorization": f"Bearer {self._token()}"}
            async with session.post(self._url, json={"path": name}, headers=headers) as response:
                await _check(response)
                announced = await response.json()
            with await asyncio.to_thread(content) as file:
                async with session.put(announced["uploadUrl"], data=file) as response:
                    await _check(response)
            return str(announced["assetId"])

        return await self._repeated(once)

    async def _repeated(self, action: Callable[[aiohttp.ClientSession], Awaitable[str]]) -> str:
        if self._session is None:
            raise RuntimeError("the store is not open")
        for attempt in range(TRIES):
            try:
                return await action(self._session)
            except StoreError as error:
                if error.status not in _LATER or attempt == TRIES - 1:
                    raise
                problem = str(error)
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = f"the platform cannot be reached: {error or type(error).__name__}"
                if attempt == TRIES - 1:
                    raise StoreError(problem) from error
            log.warning("%s; trying again", problem)
            await asyncio.sleep(BACKOFF.delay(attempt, random.random()))  # noqa: S311 - jitter
        raise AssertionError("the last try returns or raises")


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status < 300:
        return
    try:
        detail = json.loads(await response.read()).get("detail", "")
    except (ValueError, AttributeError):
        detail = ""
    raise StoreError(f"the platform answered {response.status}: {str(detail)[:300]}", response.status)


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
