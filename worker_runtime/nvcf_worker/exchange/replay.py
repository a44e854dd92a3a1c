"""Streams whose beginning can be sent again through another door."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nvcf_worker.function.response import Source

LIMIT = 256 * 1024
"""Bytes that are kept: far more than a stream is ahead of the news that its caller is gone."""


class ReplaySource:
    """Keeps what a source gave, up to LIMIT bytes, for `rewind`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._kept: list[bytes] = []
        self._again: deque[bytes] = deque()
        self._size = 0
        self._whole = True

    async def __anext__(self) -> bytes:
        if self._again:
            return self._again.popleft()
        try:
            chunk = await self._source.__anext__()
        except StopAsyncIteration:
            raise
        except BaseException:
            # Whatever came through the handler has ended it: the rest will never be made.
            self._forget()
            raise
        self._size += len(chunk)
        if self._size > LIMIT:
            self._forget()
        elif self._whole:
            self._kept.append(chunk)
        return chunk

    def rewind(self) -> bool:
        """Begin anew; False when the beginning is no longer there."""
        if self._whole:
            self._again = deque(self._kept)
        return self._whole

    def _forget(self) -> None:
        self._whole = False
        self._kept.clear()

    async def aclose(self) -> None:
        """Stop the handler and wait until it has really ended."""
        await self._source.aclose()
