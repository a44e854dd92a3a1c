"""What hangs on one broker connection, when that connection or the broker is in trouble."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import nats.errors
import pytest

from nvcf_worker.exchange.exchanges import Exchanges
from nvcf_worker.queue import puller as pullers
from nvcf_worker.queue.planner import Slots
from nvcf_worker.queue.puller import RegionPuller
from nvcf_worker.queue.session import Session


class Identity:
    """What a session reads of a configuration."""

    version_id = "v"
    instance_id = "i"


class Subscription:
    """Counts how often it was ended."""

    def __init__(self) -> None:
        self.ended = 0

    async def unsubscribe(self) -> None:
        """As the library's."""
        self.ended += 1


class Connection:
    """A broker connection as far as it is used here."""

    is_connected = True
    is_closed = False
    is_draining = False

    def __init__(self) -> None:
        self._server_info: dict[str, Any] = {}
        self.subscriptions: list[Subscription] = []
        self.flush_error: Exception | None = None

    def new_inbox(self) -> str:
        """As the library's."""
        return "_INBOX.x"

    async def subscribe(self, subject: str, **_: Any) -> Subscription:
        """As the library's."""
        self.subscriptions.append(Subscription())
        return self.subscriptions[-1]

    async def publish(self, *_: Any, **__: Any) -> None:
        """As the library's."""

    async def flush(self, timeout: float) -> None:
        """As the library's."""
        if self.flush_error is not None:
            raise self.flush_error


def session(connection: Any, on_ready: Callable[[bool], Any]) -> Session:
    config: Any = Identity()
    owner: Any = OWNER
    return Session(config, connection, ("r",), Slots(1, lambda: None), owner, provision, on_ready)


class Owner:
    """Takes everything."""

    async def polled(self, message: Any) -> None:
        """A poll."""

    async def receive(self, message: Any, region: str, limits: Any) -> None:
        """A request."""

    def cancel_request(self, request_id: str) -> None:
        """A cancel broadcast."""


OWNER = Owner()


async def provision(region: str) -> None:
    raise AssertionError("nothing is missing")


async def test_nobody_waits_for_an_answer_of_a_session_that_ended_before_it_stood() -> None:
    """The next session has an inbox of its own, and only that one's waiting are given up in time."""

    async def on_ready(first: bool) -> None:
        waiting.append(
            asyncio.create_task(
                made.replies.ask("s", b"", deadline=time.monotonic() + 2, on_sent=lambda: None)
            )
        )
        await asyncio.sleep(0)
        raise nats.errors.ConnectionClosedError

    waiting: list[asyncio.Task[Any]] = []
    made = session(Connection(), on_ready)
    with pytest.raises(nats.errors.ConnectionClosedError):
        await made.run()
    async with asyncio.timeout(20):
        assert await waiting[0] is None


async def test_polls_are_listened_to_although_the_broker_is_slow_to_say_so() -> None:
    """The subscription is there and counts; without a way to end it it would stay with the connection."""
    connection = Connection()
    connection.flush_error = nats.errors.TimeoutError()

    async def on_ready(first: bool) -> None:
        return None

    end = await session(connection, on_ready).listen("q")
    assert end is not None
    await end()
    assert [each.ended for each in connection.subscriptions] == [1]


async def test_a_pull_that_is_cancelled_together_with_an_answer_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library's own request swallows such a cancellation, and the worker would never leave."""
    asked = asyncio.Event()

    class Answer:
        data = b'{"config": {}}'

    async def request(*_: Any, **__: Any) -> Answer:
        asked.set()
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            return Answer()
        raise AssertionError

    connection: Any = Connection()
    connection.request = request
    puller = RegionPuller(connection, "v", "r", Slots(1, lambda: None), OWNER, provision)
    running = asyncio.create_task(puller.run())
    await asked.wait()
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=5)
    running.cancel()
    assert done, "it goes on as if nothing had been said"
    assert pullers.LOOK_UP_TIMEOUT < 20


class Reported:
    """An exchange that gets progress."""

    def __init__(self) -> None:
        self.reported: list[Any] = []

    def progress(self, percent: float, partial: Any) -> None:
        """As the real one."""
        self.reported.append(percent)


@pytest.mark.parametrize(
    "text", [b'{"partialResponse":' + b"[" * 100_000, b'{"progress":1' + b"0" * 400 + b"}", b"[1]", b"\xff"]
)
def test_a_progress_file_of_any_content_does_not_end_the_worker(text: bytes) -> None:
    transport: Any = None
    exchange: Any = Reported()
    exchanges = Exchanges(transport)
    exchanges._open["q"] = exchange
    exchanges.progress("q", text)
    assert exchange.reported == []
