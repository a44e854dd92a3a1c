"""Requests over NATS with many answers awaited at once: the inline reply (protocol.md, section 2.10)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg


class _Waiting(NamedTuple):
    deadline: float
    subject: str
    future: asyncio.Future[Msg | None]

    def give_up(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class ReplyInbox:
    """One subscription for all answers, and no timer a request: `expire` is called now and then.

    nats-py's own `request` makes a timer, a random token and two futures for each call.
    """

    def __init__(self, connection: Client, prefix: str) -> None:
        self._connection = connection
        self._prefix = f"{prefix}.reply."
        self._next = 0
        self._waiting: dict[str, _Waiting] = {}
        self._denied: set[str] = set()

    async def start(self) -> None:
        """Subscribe."""
        await self._connection.subscribe(f"{self._prefix}*", cb=self._on_message)

    async def request(
        self, subject: str, payload: bytes, *, deadline: float, on_sent: Callable[[], None]
    ) -> Msg | None:
        """Publish and wait for one answer; None when none came until `deadline` (monotonic seconds).

        `on_sent` is called when the message has been handed to the connection. Raises nats.errors.Error
        when it cannot be sent.
        """
        if subject in self._denied:
            on_sent()
            return None
        self._next += 1
        token = f"{self._next:x}"
        future: asyncio.Future[Msg | None] = asyncio.get_running_loop().create_future()
        self._waiting[token] = _Waiting(deadline, subject, future)
        try:
            await self._connection.publish(subject, payload, reply=self._prefix + token)
            on_sent()
            return await future
        finally:
            self._waiting.pop(token, None)

    def __len__(self) -> int:
        """How many answers are awaited."""
        return len(self._waiting)

    async def _on_message(self, message: Msg) -> None:
        entry = self._waiting.get(message.subject[len(self._prefix) :])
        if entry is not None and not entry.future.done():
            no_responders = message.headers is not None and message.headers.get("Status") == "503"
            entry.future.set_result(None if no_responders else message)

    def expire(self, now: float) -> None:
        """Give up on answers that are overdue."""
        for entry in list(self._waiting.values()):
            if entry.deadline > now:
                # Deadlines are given in the order of the requests, so the rest is younger.
                return
            entry.give_up()

    def denied(self, subject: str) -> None:
        """The broker lets nothing through to this subject: nobody need wait for an answer from there."""
        self._denied.add(subject)
        for entry in list(self._waiting.values()):
            if entry.subject == subject:
                entry.give_up()

    def close(self) -> None:
        """Nothing more comes: everybody who waits gets None."""
        for entry in self._waiting.values():
            entry.give_up()
