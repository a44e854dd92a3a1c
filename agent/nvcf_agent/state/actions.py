"""The next action for an instance, derived from its state alone (level-triggered). Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from nvcf_agent.state.managed_instance import ManagedInstance, Phase
from nvcf_proto.icms.names import MESSAGE_MAX_AGE_SECONDS
from nvcf_proto.icms.reports import InstanceState
from nvcf_proto.settings import INFERENCE_READY_TIMEOUT

# How long an ended instance is known.
KEEP_FINISHED_SECONDS = 300.0
# The same where the order does not say when it expires; NVIDIA's agent keeps a failed request so long.
_KEEP_WITHOUT_EXPIRY_SECONDS = 3600.0


@dataclass(frozen=True)
class Start:
    """Start the process."""


@dataclass(frozen=True)
class Delete:
    """End the process within `grace` seconds."""

    grace: float


@dataclass(frozen=True)
class GiveUp:
    """End a process that does not become ready, for this reason."""

    give_up_reason: str


@dataclass(frozen=True)
class Complete:
    """Mark as completed: nothing of a terminating instance runs."""


@dataclass(frozen=True)
class Clean:
    """Remove the files of an ended instance."""


@dataclass(frozen=True)
class Forget:
    """Forget an instance that ended long ago."""


Action = Start | Delete | GiveUp | Complete | Clean | Forget


def next_action(
    instance: ManagedInstance,
    now: float,
    wall: float,
    *,
    ready_timeout: float = INFERENCE_READY_TIMEOUT,
    keep_finished: float = KEEP_FINISHED_SECONDS,
    removed: bool = False,
) -> Action | None:
    """Return the next action for an instance without a running action. None: wait.

    `removed`: somebody has deleted its request, which goes as soon as its end is reported.
    """
    if instance.is_final:
        told = instance.reported is InstanceState.TERMINATED
        if removed and instance.is_over and told:
            return Forget()
        return _finished(instance, wall, keep_finished)
    if instance.phase is Phase.TERMINATING:
        return Delete(instance.grace) if instance.has_process else Complete()
    if not instance.acknowledged:
        return None
    if not instance.has_process:
        return Start() if instance.retry_at <= now else None
    overdue = instance.phase is Phase.STARTING and now - instance.waiting_since > ready_timeout
    if overdue and instance.give_up_reason is None:
        return GiveUp(f"not ready after {ready_timeout:g} s")
    return None


def _finished(instance: ManagedInstance, wall: float, keep_finished: float) -> Action | None:
    if instance.has_process:
        return Delete(instance.grace)
    if not instance.cleaned:
        return Clean()
    # A late copy of its creation message must still be recognised as known.
    longest = instance.updated_at + MESSAGE_MAX_AGE_SECONDS
    expires_at = instance.order.expires_at or instance.updated_at + _KEEP_WITHOUT_EXPIRY_SECONDS
    until = max(instance.updated_at + keep_finished, min(expires_at, longest))
    if instance.reported is not InstanceState.TERMINATED:
        # Its end is reported until the control plane has taken it, for as long as a message can last.
        until = longest
    return Forget() if wall > until else None


def next_retry(instances: Iterable[ManagedInstance], now: float) -> float:
    """Return the seconds until the first postponed start is due; infinite if there is none."""
    due = [each.retry_at - now for each in instances if not each.has_process and not each.is_ending]
    return min((delay for delay in due if delay > 0), default=float("inf"))
