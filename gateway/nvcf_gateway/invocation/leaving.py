"""What callers that still wait get when their gateway stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nvcf_gateway.errors import StoreUnavailable
from nvcf_gateway.exchange.pending import Pending, PendingRequests

_LOOK_SECONDS = 0.2


async def end_waits(pending: PendingRequests, is_running: Callable[[str], bool], grace: float) -> None:
    """End waits that cannot end well: at once without an instance, after `grace` seconds all.

    `is_running` tells whether a version has a running instance. A kept call gets 202 and can be polled after
    the restart, any other one 503; both are better than a connection that breaks.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + grace
    while True:
        for each in pending.all():
            if loop.time() >= end or not is_running(each.version_id):
                _end(each)
        await asyncio.sleep(_LOOK_SECONDS)


def _end(pending: Pending) -> None:
    if pending.storage is not None:
        pending.give_way()
    else:
        pending.reject(StoreUnavailable("the gateway is stopping: send the call again"))
