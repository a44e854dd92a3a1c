"""What a backend tells of its instances."""

from dataclasses import dataclass

from nvcf_agent.state.managed_instance import Category
from nvcf_proto.icms.causes import Cause


@dataclass(frozen=True)
class Ready:
    """The health check answers 200, for the first time or again."""

    instance_id: str


@dataclass(frozen=True)
class Unready:
    """The instance runs, but does not serve, for this reason: not yet, or not any more."""

    instance_id: str
    reason: str


@dataclass(frozen=True)
class Ended:
    """The instance has ended. `reason` says how, with the end of its error output.

    `cause` is NVIDIA's word for it; None: that of the category. `final`: it fails without another try.
    Without `gone`, something of it is left, which the agent deletes. `exit_code` is that of a task's process.
    `runs`: the task itself still runs, and gets its grace period.
    """

    instance_id: str
    reason: str
    category: Category = Category.CRASH
    cause: Cause | None = None
    final: bool = False
    gone: bool = True
    exit_code: int | None = None
    runs: bool = False


@dataclass(frozen=True)
class Observed:
    """What the backend sees of a running instance: its node, addresses, and restarts of its containers.

    `why_restarted` says how the run before the last restart ended.
    """

    instance_id: str
    node: str = ""
    ips: tuple[str, ...] = ()
    restarts: int = 0
    why_restarted: str = ""


@dataclass(frozen=True)
class Progress:
    """A part of an instance's start is over, since Unix time `at`."""

    instance_id: str
    part: str
    at: float


Event = Ready | Unready | Ended | Observed | Progress
