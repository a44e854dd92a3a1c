"""Requests whose callers wait at this replica, and the tokens by which workers reach them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.exchange.bodies import Body
from nvcf_gateway.exchange.sinks import Sink
from nvcf_proto.h1 import RequestHead, ResponseHead
from nvcf_proto.ids import new_id


class Outcome(Enum):
    """How the delivery of an answer ended."""

    INLINE = auto()
    """`Pending.inline` holds the whole answer."""
    STREAMED = auto()
    """The sink has got everything."""
    BROKEN = auto()
    """The worker left or sent nonsense after the head."""
    TIME_OVER = auto()
    """The deadline has passed first."""
    REJECTED = auto()
    """`Pending.problem` is the caller's answer: the request itself cannot be served."""


def _new_outcome() -> asyncio.Future[Outcome]:
    return asyncio.get_running_loop().create_future()


Keeper = Callable[[ResponseHead, bytes], Awaitable[bool]]
"""Stores an answer; False when another one is stored already."""


@dataclass(eq=False, slots=True)
class Pending:
    """One request whose answer is taken here, for a caller that waits or for the result store.

    The response token and the inline token are each good for one answer; whichever comes first
    closes both. A delivery that breaks before its head was complete changes nothing.
    """

    request_id: str
    version_id: str
    sink: Sink
    body: Body
    head: RequestHead
    response_token: str = field(default_factory=new_id)
    inline_token: str = field(default_factory=new_id)
    request_token: str | None = None
    outcome: asyncio.Future[Outcome] = field(default_factory=_new_outcome)
    inline: tuple[ResponseHead, bytes] | None = None
    keeper: Keeper | None = None
    """Stores an inline answer before the worker is told that it is delivered."""
    longest: float = float("inf")
    """Loop time at which even a streamed answer is cut off."""
    timer: asyncio.TimerHandle | None = None
    expiry: asyncio.TimerHandle | None = None
    keep: Callable[[], tuple[Sink, Keeper]] | None = None
    """Where the answer goes when the deadline passes first; None: nobody wants it then."""
    detached: bool = False
    problem: HttpProblem | None = None
    body_attempt: int = 0
    streaming: asyncio.Task[object] | None = None
    status: int = 0
    """HTTP status of the answer, 0 before there is one."""
    on_answer: Callable[[bool], None] | None = None
    """Told once: True at the first answer that a worker brings, False when none is wanted any more."""

    @property
    def open(self) -> bool:
        """Whether an answer is still wanted and none has begun."""
        return self.streaming is None and self.inline is None and not self.outcome.done()

    def take_inline(self, head: ResponseHead, body: bytes) -> bool:
        """Accept a complete answer; False when it comes too late."""
        if not self.open:
            return False
        self.inline = (head, body)
        self.status = head.status
        self.outcome.set_result(Outcome.INLINE)
        self.tell(answered=True)
        return True

    def begin_stream(self, task: asyncio.Task[object] | None) -> bool:
        """Accept the head of a streamed answer delivered by `task`; False when it comes too late.

        From here on the poll time no longer counts, only the longest duration of a call.
        """
        if not self.open or task is None:
            return False
        self.streaming = task
        self.tell(answered=True)
        if self.timer is not None:
            self.set_deadline(self.longest)
        return True

    def tell(self, *, answered: bool) -> None:
        """A worker has brought an answer, or none will be taken any more."""
        if self.on_answer is not None:
            told, self.on_answer = self.on_answer, None
            told(answered)

    def reopen(self) -> None:
        """Take back an accepted stream, so that another delivery may answer."""
        self.streaming = None

    def set_deadline(self, when: float) -> None:
        """Settle with TIME_OVER at `when` (loop time) unless something else comes first."""
        self.clear_deadline()
        self.timer = asyncio.get_running_loop().call_at(when, self._time_over)

    def _time_over(self) -> None:
        self.timer = None
        outcome = self.outcome
        if outcome.done():
            return
        if self.keep is not None and self.open:
            # In one step with the end of the wait: a worker that answers now finds the door open.
            self.sink, self.keeper = self.keep()
            self.outcome, self.detached = _new_outcome(), True
        outcome.set_result(Outcome.TIME_OVER)

    def give_way(self) -> None:
        """The answer is in the store already, from elsewhere: the caller need not wait here any longer."""
        if self.timer is not None and self.open:
            self.clear_deadline()
            self._time_over()

    def clear_deadline(self) -> None:
        """No deadline any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def outlive(self, sink: Sink, keeper: Keeper) -> None:
        """The caller has left: whatever comes from now on goes to `sink` and `keeper`.

        An answer that is being streamed stays with its own sink, which has to cope with that.
        """
        self.clear_deadline()
        if self.streaming is None:
            self.sink, self.keeper = sink, keeper
        self.outcome, self.detached = _new_outcome(), True

    def reject(self, problem: HttpProblem) -> None:
        """The request itself turned out to be one that is not served."""
        if self.open:
            self.problem = problem
            self.settle(Outcome.REJECTED)

    def carry_on(self) -> None:
        """The caller has left in the middle of a streamed answer, whose sink copes with that."""
        self.outcome, self.detached = _new_outcome(), True

    def settle(self, outcome: Outcome) -> None:
        """Tell the caller's side how the delivery ended."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def take_body(self, attempt: int | None) -> bool:
        """Whether a delivery may fetch the body; the token is good once for each delivery attempt.

        `attempt` is the delivery count a worker of ours states ([ext]), None for other workers.
        """
        number = 1 if attempt is None else attempt
        if number <= self.body_attempt:
            return False
        self.body_attempt = number
        return True


class PendingRequests:
    """All requests that wait here, found by their tokens."""

    def __init__(self) -> None:
        self._by_response: dict[str, Pending] = {}
        self._by_inline: dict[str, Pending] = {}
        self._by_request: dict[str, Pending] = {}
        self._by_id: dict[str, Pending] = {}

    def __len__(self) -> int:
        return len(self._by_response)

    def add(self, pending: Pending) -> None:
        """Let workers reach the request."""
        self._by_response[pending.response_token] = pending
        self._by_inline[pending.inline_token] = pending
        if pending.request_token is not None:
            self._by_request[pending.request_token] = pending

    def add_detached(self, pending: Pending) -> None:
        """Let workers reach a request that no caller waits for; found by its id as well."""
        self._by_id[pending.request_id] = pending
        self.add(pending)

    def keep_for(self, pending: Pending, seconds: float) -> None:
        """Forget the request in so many seconds, unless that happens before."""
        if pending.expiry is not None:
            pending.expiry.cancel()
        # In a context of its own: the caller's holds all that its exchange was about.
        pending.expiry = asyncio.get_running_loop().call_later(
            seconds, self._expired, pending, context=contextvars.Context()
        )

    def _expired(self, pending: Pending) -> None:
        pending.tell(answered=False)
        self.remove(pending)

    def answered(self, pending: Pending, status: int) -> bool:
        """A request that no caller waits for has an answer; whether its door is closed thereby.

        After a 202 the worker goes on and comes again: to the door of the request, never to that of a poll.
        """
        if status == 202 and self._by_id.get(pending.request_id) is pending:
            return False
        self.remove(pending)
        return True

    def detached(self, request_id: str) -> Pending | None:
        """The request of that id for which this replica stores an answer."""
        return self._by_id.get(request_id)

    def remove(self, pending: Pending) -> None:
        """Forget the request; its tokens are void from here on."""
        if pending.expiry is not None:
            # A timer that is only left to run would hold the request, and its body, for a day.
            pending.expiry.cancel()
            pending.expiry = None
        self._by_response.pop(pending.response_token, None)
        self._by_inline.pop(pending.inline_token, None)
        if pending.request_token is not None:
            self._by_request.pop(pending.request_token, None)
        if self._by_id.get(pending.request_id) is pending:
            del self._by_id[pending.request_id]

    def by_response_token(self, token: str) -> Pending | None:
        """The request whose answer `token` may deliver."""
        return self._by_response.get(token)

    def by_inline_token(self, token: str) -> Pending | None:
        """The request whose answer `token` may deliver inline."""
        return self._by_inline.get(token)

    def by_request_token(self, token: str) -> Pending | None:
        """The request whose body `token` may fetch."""
        return self._by_request.get(token)
