"""What an agent has to do about a request, judged by its state alone, never by what happened. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from nvcf_agent.state.managed_instance import Phase, Request
from nvcf_proto.settings import INFERENCE_READY_TIMEOUT

# How long a finished instance can be looked at.
KEEP_FINISHED_SECONDS = 300.0


@dataclass(frozen=True)
class Start:
    """Start its process."""


@dataclass(frozen=True)
class Delete:
    """Tell its process to leave and see to it."""

    grace: float


@dataclass(frozen=True)
class GiveUp:
    """End a process that does not become ready."""

    verdict: str


@dataclass(frozen=True)
class Settle:
    """Nothing runs of what was to leave."""


@dataclass(frozen=True)
class Clean:
    """Remove the files of what is finished."""


@dataclass(frozen=True)
class Forget:
    """Its record has been readable long enough."""


Action = Start | Delete | GiveUp | Settle | Clean | Forget


def next_action(
    request: Request,
    now: float,
    wall: float,
    *,
    ready_timeout: float = INFERENCE_READY_TIMEOUT,
    keep_finished: float = KEEP_FINISHED_SECONDS,
) -> Action | None:
    """The one thing to do for a request for which nothing is being done. None: wait."""
    if request.is_final:
        return _finished(request, wall, keep_finished)
    if request.phase is Phase.TERMINATING:
        return Delete(request.grace) if request.has_process else Settle()
    if not request.has_process:
        return Start() if request.retry_at <= now else None
    overdue = request.phase is Phase.STARTING and now - request.waiting_since > ready_timeout
    if overdue and request.verdict is None:
        return GiveUp(f"not ready after {ready_timeout:g} s")
    return None


def _finished(request: Request, wall: float, keep_finished: float) -> Action | None:
    if request.has_process:
        return Delete(0.0)
    if not request.cleaned:
        return Clean()
    # A late copy of its creation message must still be recognised.
    until = max(request.updated_at + keep_finished, request.order.expires_at)
    return Forget() if wall > until else None


def next_retry(requests: Iterable[Request], now: float) -> float:
    """Seconds until the first postponed start is due; infinite if there is none."""
    due = [each.retry_at - now for each in requests if not each.has_process and not each.is_ending]
    return min((delay for delay in due if delay > 0), default=float("inf"))
