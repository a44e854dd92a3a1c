"""Leaving a broker that is away: the library loses a cancellation that meets a refused connection."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from nvcf_worker.queue import connect as link


async def stubborn() -> None:
    """As the library's loops before Python 3.12: the first cancellation is taken for a failed attempt."""
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        await asyncio.sleep(20)


class Library:
    """A connection that is not there."""

    is_closed = False

    def __init__(self) -> None:
        self._reconnection_task: asyncio.Task[None] | None = None

    async def connect(self, **_: Any) -> None:
        """As the library's."""
        await stubborn()

    async def close(self) -> None:
        """As the library's: it waits for the end of its own attempts for a moment only."""
        if self._reconnection_task is not None:
            self._reconnection_task.cancel()


class Configuration:
    """What is read to connect."""

    nats_servers = ("nats://127.0.0.1:1",)
    version_id = "v"
    instance_id = "i"
    nkey_seed = None


async def test_nothing_goes_on_after_a_connection_was_closed() -> None:
    """The end of the process would wait for it, until somebody kills it."""
    connection: Any = Library()
    connection._reconnection_task = task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await link.close_connection(connection)
    assert task.done()


async def test_an_attempt_to_connect_ends_when_its_worker_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "Client", Library)

    async def nothing() -> None:
        return None

    config: Any = Configuration()
    connecting = asyncio.create_task(
        link.open_connection(
            config,
            lambda: "token",
            on_reconnect=nothing,
            on_closed=nothing,
            on_lame_duck=nothing,
            on_denied=lambda _: None,
            limit=None,
            counts=Counter(),
        )
    )
    await asyncio.sleep(0.01)
    connecting.cancel()
    done, _ = await asyncio.wait({connecting}, timeout=5)
    connecting.cancel()
    assert done
    assert connecting.cancelled()
