"""Request and reply over the broker that a cancelled task can rely on.

The library's own `request` waits with `asyncio.wait_for`, which before Python 3.12 swallows a cancellation
that arrives together with the answer, and its flush swallows one too. A gateway notices a caller that left
only by cancellation, so it cannot use them.
"""

import asyncio
import itertools

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

_NO_RESPONDERS = "503"
_ENDS_WITHIN = 0.2


class BrokerRequests:
    """Many requests at once over one inbox of a client. Call `start` first."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._prefix = client.new_inbox()
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[Msg]] = {}

    async def start(self) -> None:
        """Subscribe to the answers."""
        await self._client.subscribe(f"{self._prefix}.*", cb=self._answered)

    async def _answered(self, message: Msg) -> None:
        future = self._waiting.pop(message.subject.rpartition(".")[2], None)
        if future is not None and not future.done():
            future.set_result(message)

    async def request(
        self, subject: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None
    ) -> Msg:
        """Publish and wait `timeout` seconds for the answer.

        Raises TimeoutError, `nats.errors.NoRespondersError` and what publishing raises.
        """
        token = str(next(self._numbers))
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        try:
            await self._client.publish(subject, payload, reply=f"{self._prefix}.{token}", headers=headers)
            raise_if_cancelled()
            async with asyncio.timeout(timeout):
                message = await future
        finally:
            self._waiting.pop(token, None)
        if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
            raise nats.errors.NoRespondersError
        return message


def raise_if_cancelled() -> None:
    """Raise the CancelledError that a library call before may have swallowed."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def end_task(task: "asyncio.Future[None]") -> None:
    """Cancel a task of the library's until it has ended.

    Before Python 3.12 it may lose a cancellation that meets e.g. a refused connection, and goes on for ever.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_ENDS_WITHIN)
    if not task.cancelled():
        # Whoever needs it asks again.
        task.exception()
