"""What is said in events about an instance."""

from nvcf_agent.kubernetes.events import CREATION, STATUS_UPDATE, TERMINATION, instance_news
from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import Category, ManagedInstance
from nvcf_agent.state.persisted_state import StoredInstance
from tests.unit.agent.orders import CLUSTER, order


def news(before: ManagedInstance | None, after: ManagedInstance) -> tuple[str, str, bool] | None:
    return instance_news(
        StoredInstance.of(before, CLUSTER) if before is not None else None, StoredInstance.of(after, CLUSTER)
    )


def test_each_change_that_people_see_is_told_once() -> None:
    accepted = transitions.accepted(order("r"), Share(), 1.0)
    assert news(None, accepted) == (CREATION, "instance 0-sr-r of hello is ordered", False)
    started = transitions.launched(
        transitions.creating(accepted, wall=2.0), pid=1, health_port=None, log_path="", now=2.0, wall=2.0
    )
    assert news(accepted, started) is None
    running = transitions.ready(started, 3.0)
    assert news(started, running) == (STATUS_UPDATE, "instance 0-sr-r is running", False)
    assert news(running, running) is None
    ending = transitions.terminating(running, "scaled down", 1.0, 4.0)
    assert news(running, ending) == (TERMINATION, "instance 0-sr-r ends: scaled down", False)
    gone = transitions.ended(ending, Category.CRASH, "exit 0", now=5.0, wall=5.0)
    assert news(ending, gone) == (TERMINATION, "instance 0-sr-r is gone: scaled down", False)
    refused = transitions.refused(order("r"), Category.UNSUPPORTED, "no such type", 1.0)
    assert news(None, refused) == (CREATION, "instance 0-sr-r is refused: no such type", True)
