"""Requests whose responses are taken at this replica, and the tokens by which workers reach them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.exchange.bodies import Body, empty_body
from nvcf_gateway.exchange.expiry import Expiry
from nvcf_gateway.exchange.sinks import Sink
from nvcf_gateway.exchange.states import Event, State, transition
from nvcf_proto.h1 import RequestHead, ResponseHead
from nvcf_proto.ids import new_id
from nvcf_proto.settings import GATEWAY_EXTRA_WAIT


class Outcome(Enum):
    """How the wait of a caller ended."""

    INLINE = auto()
    """`Pending.inline` holds the whole response."""
    STREAMED = auto()
    """The sink has got everything."""
    BROKEN = auto()
    """The worker left or sent nonsense after the head."""
    TIME_OVER = auto()
    """The deadline has passed first. The request is detached if its response is stored."""
    CUT_OFF = auto()
    """The longest duration of a call has passed in the middle of the response."""
    REJECTED = auto()
    """`Pending.problem` is the response: the request itself cannot be served."""


class Storage(Protocol):
    """Where the response of one request is stored."""

    def sink(self) -> Sink:
        """Return a sink that stores a streamed response."""

    async def save(self, head: ResponseHead, body: bytes) -> bool:
        """Store a complete response; return False if another one is stored already."""


_NOTHING: Body = empty_body()
_bare_head = functools.lru_cache(maxsize=16)(lambda method: RequestHead(method, "", []))


def _new_outcome() -> asyncio.Future[Outcome]:
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False, slots=True)
class Pending:
    """One request whose response is taken here, for a caller that waits or for the result store.

    The response token and the inline token are each good for one response; the first of them that is used
    closes both. A delivery that breaks before its head is complete changes nothing.
    """

    request_id: str
    version_id: str
    sink: Sink
    body: Body
    head: RequestHead
    response_token: str = field(default_factory=new_id)
    inline_token: str = field(default_factory=new_id)
    request_token: str | None = None
    state: State = State.WAITING
    outcome: asyncio.Future[Outcome] = field(default_factory=_new_outcome)
    inline: tuple[ResponseHead, bytes] | None = None
    storage: Storage | None = None
    """Where the response goes once no caller waits for it; None: nobody wants it then."""
    stores_inline: bool = False
    """Whether an inline response is stored before the worker is told that it is delivered."""
    longest: float = float("inf")
    """Loop time at which even a streamed response is cut off."""
    timer: asyncio.TimerHandle | None = None
    expiry: Expiry[Pending] | None = None
    problem: HttpProblem | None = None
    body_attempt: int = 0
    storing: asyncio.Task[None] | None = None
    """The task that stores an inline response."""
    streaming: asyncio.Task[object] | None = None
    """The task that receives the response."""
    status: int = 0
    """HTTP status of the response, 0 before there is one."""
    again: Callable[[], Awaitable[object]] | None = None
    """Publishes the request again, while a caller waits for it."""
    republished: bool = False
    on_response: Callable[[bool], None] | None = None
    """Called once: with True for the first response that a worker brings, with False when none is wanted
    any more."""

    def _apply(self, event: Event) -> bool:
        """Change the state; return False if `event` comes too late."""
        state = transition(self.state, event)
        if state is None:
            return False
        self.state = state
        return True

    def _settle(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    @property
    def open(self) -> bool:
        """Whether a response is still wanted and none has begun."""
        # A caller's task that was cancelled cancels the outcome, and decides a little later what follows.
        return self.state is State.DETACHED or (self.state is State.WAITING and not self.outcome.cancelled())

    @property
    def is_storing(self) -> bool:
        """Whether an inline response is being stored."""
        return self.storing is not None and not self.storing.done()

    @property
    def detached(self) -> bool:
        """Whether no caller waits any more and the response is stored."""
        return self.state is State.DETACHED or self.state is State.STORING

    @property
    def inline_storage(self) -> Storage | None:
        """Where an inline response has to be stored before it is acknowledged, if anywhere."""
        return self.storage if self.stores_inline or self.state is State.DETACHED else None

    def take_inline(self, head: ResponseHead, body: bytes) -> bool:
        """Accept a complete response; return False if it comes too late."""
        if not self.open or not self._apply(Event.INLINE):
            return False
        self.inline = (head, body)
        self.status = head.status
        self._settle(Outcome.INLINE)
        self.notify(answered=True)
        return True

    def begin_stream(self, task: asyncio.Task[object] | None) -> bool:
        """Accept the head of a response that `task` streams; return False if it comes too late.

        From here on the poll time no longer counts, only the longest duration of a call.
        """
        if not self.open or task is None or not self._apply(Event.HEAD):
            return False
        self.streaming = task
        self.notify(answered=True)
        if self.timer is not None:
            self.set_deadline(self.longest)
        return True

    def finish_stream(self, *, comes_again: bool = False) -> None:
        """Note that the response is complete; `comes_again`: it was a 202 to which the worker adds."""
        if self._apply(Event.PROGRESS if comes_again else Event.FINISHED):
            self._settle(Outcome.STREAMED)

    def finish_inline(self, *, comes_again: bool) -> None:
        """Note that a complete response is in the store; `comes_again` as for `finish_stream`."""
        self._apply(Event.PROGRESS if comes_again else Event.INLINE)

    def break_stream(self) -> None:
        """Note that the response broke off. If nobody has seen any of it, another delivery may answer."""
        if self._apply(Event.BROKE):
            self._settle(Outcome.BROKEN)

    def supersede(self) -> None:
        """Note that the streamed response is void: another execution has answered first."""
        if self._apply(Event.FINISHED):
            self._settle(Outcome.BROKEN)

    def reject(self, problem: HttpProblem) -> None:
        """End the wait with `problem`: the request itself turned out to be one that is not served."""
        if self.open and self._apply(Event.REJECTED):
            self.problem = problem
            self._settle(Outcome.REJECTED)

    def notify(self, *, answered: bool) -> None:
        """Call `on_response`, once."""
        if self.on_response is not None:
            callback, self.on_response = self.on_response, None
            callback(answered)

    def set_deadline(self, when: float, look: Callable[[Pending], None] | None = None) -> None:
        """End the wait at `when` (loop time) unless something else ends it before.

        With `look` that is called at `when`, and the wait ends `GATEWAY_EXTRA_WAIT` later.
        """
        self.clear_deadline()
        loop = asyncio.get_running_loop()
        self.timer = (
            loop.call_at(when, self._expire) if look is None else loop.call_at(when, self._over, look)
        )

    def _over(self, look: Callable[[Pending], None]) -> None:
        self.set_deadline(asyncio.get_running_loop().time() + GATEWAY_EXTRA_WAIT)
        look(self)

    def clear_deadline(self) -> None:
        """Remove the deadline."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _expire(self) -> None:
        self.timer = None
        if self.outcome.done():
            return
        outcome = Outcome.CUT_OFF if self.state is State.STREAMING else Outcome.TIME_OVER
        if self.storage is not None and self.state is State.WAITING:
            # In one step with the end of the wait: a worker that answers now is still welcome.
            self.detach()
        else:
            self._apply(Event.EXPIRED)
        self._settle(outcome)

    def give_way(self) -> None:
        """End the wait as at its deadline: another execution's response is in the store already."""
        if self.timer is not None and self.open:
            self.clear_deadline()
            self._expire()

    def detach(self) -> None:
        """Let the response go to the store, since the caller no longer waits.

        A response that is being streamed stays with its own sink, which has to cope with that.
        """
        self.clear_deadline()
        if self._apply(Event.LEFT) and self.state is State.DETACHED and self.storage is not None:
            self.sink = self.storage.sink()

    def let_go(self) -> None:
        """Drop what nobody needs of a request that is kept as a whole in the queue, for a day perhaps."""
        if self.request_token is None:
            self.body = _NOTHING
            self.head = _bare_head(self.head.method)

    def withdraw(self) -> None:
        """Take no response any more."""
        self._apply(Event.WITHDRAWN)
        self.outcome.cancel()

    def take_body(self, attempt: int | None) -> bool:
        """Return whether a delivery may fetch the body; the token is good once for each delivery attempt.

        `attempt` is the delivery count a worker of ours states ([ext]), None for other workers.
        """
        number = 1 if attempt is None else attempt
        if number <= self.body_attempt:
            return False
        self.body_attempt = number
        return True


class PendingRequests:
    """All requests whose responses are taken here, found by their tokens."""

    def __init__(self) -> None:
        self._by_response: dict[str, Pending] = {}
        self._by_inline: dict[str, Pending] = {}
        self._by_request: dict[str, Pending] = {}
        self._by_id: dict[str, Pending] = {}
        # By how long requests are retained, for which there are two settings.
        self._expiries: dict[float, Expiry[Pending]] = {}

    def __len__(self) -> int:
        return len(self._by_response)

    def all(self) -> list[Pending]:
        """Return all requests."""
        return list(self._by_response.values())

    def add(self, pending: Pending) -> None:
        """Let workers reach the request."""
        self._by_response[pending.response_token] = pending
        self._by_inline[pending.inline_token] = pending
        if pending.request_token is not None:
            self._by_request[pending.request_token] = pending

    def retain(self, pending: Pending, seconds: float) -> None:
        """Let workers reach a request that no caller waits for, for so many seconds; its id finds it too."""
        self.remove(pending)
        self._by_id[pending.request_id] = pending
        self.add(pending)
        self.expire(pending, seconds)

    def expire(self, pending: Pending, seconds: float) -> None:
        """Forget the request in so many seconds, unless that happens before."""
        if pending.expiry is not None:
            pending.expiry.discard(pending)
        pending.expiry = self._expiries.setdefault(seconds, Expiry(seconds, self._expired))
        pending.expiry.add(pending)

    def _expired(self, pending: Pending) -> None:
        pending.notify(answered=False)
        self.remove(pending)

    def stored(self, pending: Pending, status: int) -> bool:
        """Note that the response of a detached request is stored; return whether the worker comes again.

        After a 202 it does, by the tokens of the request itself and never by those of a poll.
        """
        comes_again = status == 202 and self._by_id.get(pending.request_id) is pending
        if not comes_again:
            self.remove(pending)
        return comes_again

    def detached(self, request_id: str) -> Pending | None:
        """Return the request of that id for which this replica stores a response."""
        return self._by_id.get(request_id)

    def remove(self, pending: Pending) -> None:
        """Forget the request; its tokens are void from here on."""
        if pending.expiry is not None:
            pending.expiry.discard(pending)
            pending.expiry = None
        self._by_response.pop(pending.response_token, None)
        self._by_inline.pop(pending.inline_token, None)
        if pending.request_token is not None:
            self._by_request.pop(pending.request_token, None)
        if self._by_id.get(pending.request_id) is pending:
            del self._by_id[pending.request_id]

    def by_response_token(self, token: str) -> Pending | None:
        """Return the request whose response `token` may deliver."""
        return self._by_response.get(token)

    def by_inline_token(self, token: str) -> Pending | None:
        """Return the request whose response `token` may deliver inline."""
        return self._by_inline.get(token)

    def by_request_token(self, token: str) -> Pending | None:
        """Return the request whose body `token` may fetch."""
        return self._by_request.get(token)
