"""Running a handler within a limit of its own, its stream included."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from nvcf_worker.function.limit import Limit

if TYPE_CHECKING:
    from nvcf_worker.run.executor import Outcome, Source


async def within(limit: Limit, run: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Wait for a place, run, and give it back when the answer is complete, of a stream when it has ended."""
    from nvcf_worker.run.executor import StreamReply

    began = await limit.take()
    try:
        outcome = await run()
    except BaseException:
        limit.give_back()
        raise
    if isinstance(outcome, StreamReply):
        outcome.source = _Holding(outcome.source, limit, began)
    else:
        limit.give_back(began)
    return outcome


class _Holding:
    """A stream that holds a place."""

    def __init__(self, source: Source, limit: Limit, began: float) -> None:
        self._source = source
        self._limit: Limit | None = limit
        # The latency of a stream is that of its first item: the rest depends on its reader.
        limit.sample(began)

    async def __anext__(self) -> bytes:
        return await self._source.__anext__()

    async def aclose(self) -> None:
        """Stop the handler, then give the place back."""
        try:
            await self._source.aclose()
        finally:
            limit, self._limit = self._limit, None
            if limit is not None:
                limit.give_back()
