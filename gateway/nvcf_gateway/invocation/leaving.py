"""What callers that still wait get when their gateway stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from nvcf_broker.errors import BrokerError
from nvcf_gateway.errors import StoreUnavailable
from nvcf_gateway.exchange.pending import Pending, PendingRequests
from nvcf_gateway.readiness import Readiness

_LOOK_SECONDS = 0.5
_CONCURRENCY = 16


async def drain(readiness: Readiness, served: Callable[[], int], least: float, most: float) -> None:
    """Serve on for `least` seconds, and up to `most` seconds more while callers are being `served`.

    Load balancers see in the first part that the gateway is not ready and send new calls elsewhere. The
    listeners stay open all the time: workers bring responses to this very gateway.
    """
    readiness.stopping = True
    await asyncio.sleep(least)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(most):
            while served():  # noqa: ASYNC110 # it is the sum of several parts, none of which tells
                await asyncio.sleep(_LOOK_SECONDS)


async def end_waits(
    pending: PendingRequests, unserved: Callable[[Pending], Awaitable[bool]], grace: float
) -> None:
    """End waits that cannot end well: those that are `unserved` at once, after `grace` seconds all.

    A kept call gets 202 and can be polled after the restart, any other one 503; both are better than a
    connection that breaks.
    """
    turns = asyncio.Semaphore(_CONCURRENCY)

    async def end_if_unserved(each: Pending) -> None:
        with contextlib.suppress(BrokerError):
            async with turns:
                if await unserved(each):
                    _end(each)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace):
            while True:
                await asyncio.gather(*(end_if_unserved(each) for each in pending.all()))
                await asyncio.sleep(_LOOK_SECONDS)
    for each in pending.all():
        _end(each)


def _end(pending: Pending) -> None:
    if pending.storage is not None:
        pending.give_way()
    else:
        pending.reject(StoreUnavailable("the gateway is stopping: send the call again"))
