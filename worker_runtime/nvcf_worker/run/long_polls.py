"""Functions that answer 202 themselves: polls are passed on to them (protocol.md, section 5.5).

The request keeps its slot and its place in the queue until the function answers anything else.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable

from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.settings import CALL_MAX_SECONDS
from nvcf_worker.errors import CallerGone
from nvcf_worker.exchange.exchange import Exchange
from nvcf_worker.function.response import Outcome
from nvcf_worker.message import Work, poll_seconds, sent_headers

LEAST_PATIENCE = 10.0
_OF_THE_BODY = frozenset(("content-type", "content-length", "content-encoding", "expect"))

Ask = Callable[[Work], Awaitable[Outcome]]


def patience(headers: Iterable[tuple[str, str]]) -> float:
    """Return how long to wait for the next poll: twice the poll time, and 10 s at least."""
    return max(LEAST_PATIENCE, 2.0 * poll_seconds((name.lower(), value) for name, value in headers))


def own_poll(work: Work, path: str, headers: Iterable[tuple[str, str]], now: float) -> Work:
    """Return a poll for a request whose result is wanted although nobody polls. `now` is Unix time."""
    message = nvcf_pb2.WorkerInvokeFunctionRequest(
        requestId=work.request_id,
        ncaId=work.message.ncaId,
        subject=work.message.subject,
        requestMethod="GET",
        requestPath=path,
    )
    message.requestTime.FromNanoseconds(int(now * 1e9))
    for name, value in headers:
        if name.lower() not in _OF_THE_BODY:
            message.requestHeaders.add(key=name, value=value)
    return Work(message, work.request_id, work.region, "", 1, now, work.reply_address, work.trace)


async def until_final(
    outcome: Outcome, exchange: Exchange, path: str, headers: list[tuple[str, str]], ask: Ask
) -> Outcome:
    """Return the function's first response that is no 202; `ask` passes a poll on to it.

    path, headers: of the request itself. Raises CallerGone when nobody polls, unless the result is kept for
    a caller that comes back: then the function is asked all the same.
    """
    wait = patience(headers)
    polled_at = time.monotonic()
    while outcome.status == 202:
        await exchange.accepted(outcome)
        poll = await exchange.next_poll(wait)
        if poll is not None:
            polled_at = time.monotonic()
            wait = patience(sent_headers(poll))
        elif exchange.outlives_caller and time.monotonic() - polled_at < CALL_MAX_SECONDS:
            poll = own_poll(exchange.work, path, headers, time.time())
        else:
            raise CallerGone("the function has answered 202, and nobody has polled since")
        outcome = await ask(poll)
    return outcome
