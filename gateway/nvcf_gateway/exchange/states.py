"""The states of a request whose response is taken here, and the only transitions between them."""

from __future__ import annotations

from enum import IntEnum, auto


class State(IntEnum):
    """Where the response of a request goes, and whether it has begun."""

    WAITING = auto()
    """A caller waits, and no response has begun."""
    STREAMING = auto()
    """A worker streams its response to the caller."""
    DETACHED = auto()
    """No caller waits any more, and no response has begun: it goes to the result store."""
    STORING = auto()
    """A worker streams its response, and no caller waits for it any more."""
    ANSWERED = auto()
    """No response is taken any more."""


class Event(IntEnum):
    """What happens to a request."""

    INLINE = auto()
    """A worker brings a complete response in one message."""
    HEAD = auto()
    """A worker has sent the head of a streamed response."""
    FINISHED = auto()
    """The streamed response is complete, or nobody can take the rest of it."""
    PROGRESS = auto()
    """A complete response was a 202, after which the worker comes again."""
    BROKE = auto()
    """The worker left or sent nonsense after the head."""
    REJECTED = auto()
    """The request itself turned out to be one that is not served."""
    EXPIRED = auto()
    """The deadline has passed, and nobody wants the response after it."""
    LEFT = auto()
    """The caller stops waiting, and the response goes to the result store."""
    WITHDRAWN = auto()
    """Nobody wants the response."""


# The keys are IntEnums because the hash of a plain Enum is a Python call, several for each request.
_TRANSITIONS = {
    State.WAITING: {
        Event.INLINE: State.ANSWERED,
        Event.HEAD: State.STREAMING,
        Event.REJECTED: State.ANSWERED,
        Event.EXPIRED: State.ANSWERED,
        Event.LEFT: State.DETACHED,
        Event.WITHDRAWN: State.ANSWERED,
    },
    State.STREAMING: {
        Event.FINISHED: State.ANSWERED,
        Event.PROGRESS: State.ANSWERED,
        Event.BROKE: State.ANSWERED,
        Event.EXPIRED: State.ANSWERED,
        Event.LEFT: State.STORING,
        Event.WITHDRAWN: State.ANSWERED,
    },
    State.DETACHED: {
        Event.INLINE: State.ANSWERED,
        Event.PROGRESS: State.DETACHED,
        Event.HEAD: State.STORING,
        Event.REJECTED: State.ANSWERED,
        Event.LEFT: State.DETACHED,
        Event.WITHDRAWN: State.ANSWERED,
    },
    State.STORING: {
        Event.FINISHED: State.ANSWERED,
        Event.PROGRESS: State.DETACHED,
        # Nothing of it has been shown to anybody: the next delivery may answer.
        Event.BROKE: State.DETACHED,
        Event.LEFT: State.STORING,
        Event.WITHDRAWN: State.ANSWERED,
    },
    State.ANSWERED: {},
}


def transition(state: State, event: Event) -> State | None:
    """Return the state after `event`, or None if `event` is refused in `state` and changes nothing."""
    return _TRANSITIONS[state].get(event)
