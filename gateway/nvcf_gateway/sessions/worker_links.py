"""Worker links that are due: which token a worker must bring, and who waits (protocol.md section 7)."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from nvcf_broker.wire import Wire
from nvcf_gateway.errors import HttpProblem


@dataclass(eq=False)
class Expected:
    """One link that is due. The token is good once, and only for this request id."""

    request_id: str
    token: str
    link: asyncio.Future[Wire]
    taken: bool = False

    async def take(self) -> Wire:
        """Wait for the link. Raises the HttpProblem with which the worker refused."""
        wire = await self.link
        self.taken = True
        return wire

    def deliver(self, wire: Wire) -> bool:
        """Hand a worker's link over; False when nobody waits any more."""
        if self.link.done():
            return False
        self.link.set_result(wire)
        return True

    def refuse(self, problem: HttpProblem) -> None:
        """[ext] The worker says that it cannot serve the session."""
        if not self.link.done():
            self.link.set_exception(problem)


class LinkTable:
    """All links that this replica waits for."""

    def __init__(self) -> None:
        self._expected: dict[str, Expected] = {}

    @contextlib.contextmanager
    def expect(self, request_id: str) -> Iterator[Expected]:
        """Let a worker dial in for `request_id` while the context lasts."""
        token = secrets.token_urlsafe(32)
        expected = Expected(request_id, token, asyncio.get_running_loop().create_future())
        self._expected[token] = expected
        try:
            yield expected
        finally:
            self._expected.pop(token, None)
            link = expected.link
            if not link.done():
                link.cancel()
            # Looked at in any case, so that a refusal nobody waited for is no unhandled error.
            elif not link.cancelled() and link.exception() is None and not expected.taken:
                link.result().abort()

    def claim(self, token: str, request_id: str) -> Expected | None:
        """Use a token up. None when it is unknown, expired, used or another request's."""
        expected = self._expected.get(token)
        if expected is None or expected.request_id != request_id:
            return None
        del self._expected[token]
        return expected
