"""Requests over the broker with many replies awaited at once, which a cancelled task can rely on.

The library's own `request` makes a timer, a random token and two futures for each call. It waits with
`asyncio.wait_for`, which before Python 3.12 swallows a cancellation that arrives together with the reply, and
its flush swallows one too. A gateway notices only by cancellation that a caller has left.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

_NO_RESPONDERS = "503"
_ENDS_WITHIN = 0.2


class _Waiting(NamedTuple):
    deadline: float
    subject: str
    future: asyncio.Future[Msg | None]

    def give_up(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class _AtOnce:
    """Takes messages as soon as they are read, where a callback's would wait in a queue for a task.

    The library takes it for the future of a subscription that gets one message.
    """

    def __init__(self, take: Callable[[Msg], None]) -> None:
        self.set_result = take

    def cancelled(self) -> bool:
        return False


class ReplyInbox:
    """One subscription for all replies. Call `start` first. `prefix` begins the reply subjects."""

    def __init__(self, client: Client, prefix: str | None = None) -> None:
        self._client = client
        self._prefix = f"{prefix or client.new_inbox()}.reply."
        self._next = 0
        self._waiting: dict[str, _Waiting] = {}
        self._denied: set[str] = set()

    async def start(self) -> None:
        """Subscribe to the replies."""
        future: Any = _AtOnce(self._on_message)
        await self._client.subscribe(f"{self._prefix}*", future=future)

    async def request(
        self, subject: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None
    ) -> Msg:
        """Publish, and return the reply that arrives within `timeout` seconds.

        Raises TimeoutError, `nats.errors.NoRespondersError` and what publishing raises.
        """
        async with asyncio.timeout(timeout):
            message = await self._exchange(subject, payload, float("inf"), headers, raise_if_cancelled)
        if message is None:
            raise nats.errors.ConnectionClosedError
        if _without_responders(message):
            raise nats.errors.NoRespondersError
        return message

    async def ask(
        self, subject: str, payload: bytes, *, deadline: float, on_sent: Callable[[], None]
    ) -> Msg | None:
        """Publish, and return the reply; None when there is none until `deadline` (monotonic seconds).

        There is no timer: the owner calls `expire` now and then. `on_sent` is called when the message has
        been handed to the connection. Raises nats.errors.Error when it cannot be sent.
        """
        if subject in self._denied:
            on_sent()
            return None
        message = await self._exchange(subject, payload, deadline, None, on_sent)
        return None if message is None or _without_responders(message) else message

    async def _exchange(
        self,
        subject: str,
        payload: bytes,
        deadline: float,
        headers: dict[str, str] | None,
        on_sent: Callable[[], None],
    ) -> Msg | None:
        self._next += 1
        token = f"{self._next:x}"
        future: asyncio.Future[Msg | None] = asyncio.get_running_loop().create_future()
        self._waiting[token] = _Waiting(deadline, subject, future)
        try:
            await self._client.publish(subject, payload, reply=self._prefix + token, headers=headers)
            on_sent()
            return await future
        finally:
            self._waiting.pop(token, None)

    def __len__(self) -> int:
        """Return the number of replies that are awaited."""
        return len(self._waiting)

    def _on_message(self, message: Msg) -> None:
        entry = self._waiting.get(message.subject[len(self._prefix) :])
        if entry is not None and not entry.future.done():
            entry.future.set_result(message)

    def expire(self, now: float) -> None:
        """Give up on replies that are overdue."""
        for entry in list(self._waiting.values()):
            if entry.deadline > now:
                # Deadlines are given in the order of the requests, so the rest is younger.
                return
            entry.give_up()

    def denied(self, subject: str) -> None:
        """Give up on replies from a subject to which the broker lets nothing through."""
        self._denied.add(subject)
        for entry in list(self._waiting.values()):
            if entry.subject == subject:
                entry.give_up()

    def close(self) -> None:
        """Give up on all replies: none can arrive any more."""
        for entry in self._waiting.values():
            entry.give_up()


def _without_responders(message: Msg) -> bool:
    return message.headers is not None and message.headers.get("Status") == _NO_RESPONDERS


def raise_if_cancelled() -> None:
    """Raise the CancelledError that an earlier library call may have swallowed."""
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
