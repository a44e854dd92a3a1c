"""What an answer of the control plane means for a request or instance (protocol.md, section 6.5). Pure."""

from enum import Enum, auto

_DONE_OF_TERMINATED = frozenset((404, 409, 412, 500))


class Outcome(Enum):
    """What follows an answer."""

    DONE = auto()
    """The control plane knows it now."""
    CLOSED = auto()
    """The request is closed there: end its instances."""
    RETRY = auto()
    """Try again later."""


def of_acknowledgement(status: int | None, *, age: float, unknown_for: float) -> Outcome:
    """Return the outcome of an acknowledgement; `age` is the request's. Only 200 is success."""
    if status == 200:
        return Outcome.DONE
    if status == 412 or (status == 404 and age >= unknown_for):
        return Outcome.CLOSED
    return Outcome.RETRY


def of_report(status: int | None, *, terminated: bool) -> Outcome:
    """Return the outcome of a status report. Only 412 ends a live instance: 404 may be a proxy's."""
    if status == 200 or (terminated and status in _DONE_OF_TERMINATED):
        return Outcome.DONE
    if status == 412:
        return Outcome.CLOSED
    return Outcome.RETRY
