"""Opening the download of a request's body, from another gateway when its own is gone."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from typing import TYPE_CHECKING

from nvcf_worker.errors import BodyUnavailable, GatewayGone, RequestCancelled
from nvcf_worker.exchange.attach import HttpDownload
from nvcf_worker.exchange.fallback_gateway import NoDoor
from nvcf_worker.exchange.handover import LOOK_AGAIN
from nvcf_worker.exchange.transports import Channels
from nvcf_worker.exchange.waiters import RESCUE_SECONDS
from nvcf_worker.message import Door
from nvcf_worker.queue.delivery import ActiveRequest, End

if TYPE_CHECKING:
    from nvcf_worker.exchange.exchange import Conversation

log = logging.getLogger("nvcf_worker")


async def fetch_body(
    active: ActiveRequest, channels: Channels, conversation: Conversation, *, whole_request: bool
) -> HttpDownload:
    """Open the download. A gateway that stands in for the request's own is used for the answer, too.

    Raises BodyUnavailable; stops the request and raises RequestCancelled when it cannot go on.
    """
    started = time.monotonic()
    work = active.work
    for attempt in itertools.count():
        refusal: BodyUnavailable | None = None
        try:
            return await channels.attach.fetch(
                conversation.door.target, whole_request=whole_request, attempt=work.attempt
            )
        except GatewayGone as error:
            log.warning("%s", error)
        except BodyUnavailable as error:
            if not error.unknown_token:
                raise
            refusal = error
        found = await channels.rescuer.ask(work.request_id)
        over = attempt > 0 and time.monotonic() - started > RESCUE_SECONDS
        if isinstance(found, Door) and not over:
            conversation.use(found)
            if found.target.request_token is None:
                raise BodyUnavailable("the gateway that had the body is gone, and so is the body")
        elif refusal is not None:
            raise refusal
        elif found is NoDoor.NOT_WANTED or over:
            raise _stopped(active, End.CALLER_GONE if found is NoDoor.NOT_WANTED else End.UNREACHABLE)
        if attempt or not isinstance(found, Door):
            await asyncio.sleep(LOOK_AGAIN.delay(attempt, random.random()))  # noqa: S311 - jitter
    raise AssertionError("unreachable")


def _stopped(active: ActiveRequest, end: End) -> RequestCancelled:
    active.stop(end)
    return RequestCancelled(end.value)
