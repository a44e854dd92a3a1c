"""Closing a connection while the broker is away."""

from __future__ import annotations

import asyncio

from nvcf_broker.connection import BrokerClient, _abandon


async def stubborn() -> None:
    """As the library's loops before Python 3.12: the first cancellation is taken for a failed attempt."""
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        await asyncio.sleep(20)


async def test_no_attempt_to_reconnect_goes_on_after_a_connection_was_closed() -> None:
    """The end of the process would wait for it, until somebody kills it."""
    client = BrokerClient()
    # The library's own part is done: it does not look at its attempt any more.
    client._status = BrokerClient.CLOSED
    client._reconnection_task = task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await client.close()
    assert task.done()


async def test_an_attempt_to_connect_is_abandoned() -> None:
    attempt = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await _abandon(BrokerClient(), attempt)
    assert attempt.done()
