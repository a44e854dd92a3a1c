"""Messages: twice, late, in any order, for other clusters."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.state.inventory import Inventory
from nvcf_agent.state.managed_instance import Category, ManagedInstance, Phase
from nvcf_agent.state.message_handlers import handle_creation, handle_termination
from nvcf_proto.compute import TerminationMessage
from nvcf_proto.ids import new_id
from nvcf_proto.models import Instance, InstanceState
from tests.unit.agent.orders import CLUSTER, order

INVENTORY = Inventory(cpu_slots=3)


def take(message: Any, **changes: Any) -> Any:
    given: dict[str, Any] = {
        "cluster": CLUSTER,
        "inventory": INVENTORY,
        "held": [],
        "known": set(),
        "records": {},
        "wall": 1.0,
    }
    return handle_creation(message, **{**given, **changes})


def record(instance_id: str, state: InstanceState, cluster: str = CLUSTER) -> dict[str, Instance]:
    made = Instance(instance_id, new_id(), new_id(), cluster, state, updated_at=0.5, created_at=0.5)
    return {instance_id: made}


def test_each_instance_becomes_a_request_of_its_own() -> None:
    first, second = new_id(), new_id()
    created = take(order(first, second, first), records=record(first, InstanceState.PENDING))
    assert [each.id for each in created.instances] == [first, second]
    assert [each.order.instance_ids for each in created.instances] == [(first,), (second,)]
    assert [each.created_at for each in created.instances] == [0.5, 1.0]


def test_beyond_capacity_it_is_refused_at_once() -> None:
    created = take(order(*(new_id() for _ in range(5))))
    assert [each.phase for each in created.instances] == [Phase.PENDING] * 3 + [Phase.FAILED] * 2
    assert {each.category for each in created.instances[3:]} == {Category.CAPACITY}
    (refused,) = take(order(gpu="H100")).instances
    assert refused.category is Category.UNSUPPORTED
    (late,) = take(order(), draining=True).instances
    assert (late.category, late.reason) == (Category.CAPACITY, "this cluster's agent is stopping")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wall": 61.0}, "expired 1 s ago"),
        ({"cluster": "elsewhere"}, "for cluster here"),
        ({"known": {"ID"}}, "known already"),
        ({"records": InstanceState.TERMINATING}, "TERMINATING"),
        ({"records": InstanceState.COMPLETED}, "COMPLETED"),
        ({"records": InstanceState.FAILED}, "FAILED"),
    ],
)
def test_what_is_not_wanted_any_more_is_ignored(changes: dict[str, Any], words: str) -> None:
    instance_id = new_id()
    if "known" in changes:
        changes = {"known": {instance_id}}
    if isinstance(changes.get("records"), InstanceState):
        changes = {"records": record(instance_id, changes["records"])}
    created = take(order(instance_id), **changes)
    assert created.instances == ()
    assert words in created.ignored[0]


def test_a_record_of_another_cluster_is_not_touched() -> None:
    instance_id = new_id()
    created = take(order(instance_id), records=record(instance_id, InstanceState.RUNNING, "there"))
    assert created.instances == ()


@pytest.mark.parametrize("text", ["", "../../etc", "a/b", "x" * 36, "DB8AD0AD-5391-48E4-9964-92B26CFAAF2F"])
def test_what_is_no_id_never_becomes_a_file_name(text: str) -> None:
    assert take(order(text)).instances == ()


def termination(*ids: str, grace: float = 5.0, cluster: str = CLUSTER) -> TerminationMessage:
    return TerminationMessage(
        message_id="m",
        cluster_id=cluster,
        version_id=new_id(),
        instance_ids=ids,
        grace_seconds=grace,
        issued_at=0.0,
    )


def test_a_termination_ends_what_is_known_and_remembers_the_rest() -> None:
    (instance,) = take(order()).instances
    unknown = new_id()
    ended = handle_termination(
        termination(instance.id, unknown, unknown), cluster=CLUSTER, known={instance.id: instance}, wall=2.0
    )
    (after,) = ended.instances
    assert (after.phase, after.grace, after.reason) == (
        Phase.TERMINATING,
        5.0,
        "the autoscaler asked for it",
    )
    assert ended.unknown == (unknown,)
    again = handle_termination(
        termination(instance.id), cluster=CLUSTER, known={instance.id: after}, wall=3.0
    )
    assert again.instances == ()
    foreign = handle_termination(
        termination(instance.id, cluster="there"), cluster=CLUSTER, known={instance.id: instance}, wall=2.0
    )
    assert foreign == type(foreign)()


IDS = [new_id() for _ in range(4)]
messages = st.one_of(
    st.lists(st.sampled_from(IDS), min_size=1, max_size=4).map(lambda ids: order(*ids)),
    st.lists(st.sampled_from(IDS), min_size=1, max_size=4).map(lambda ids: termination(*ids)),
)


def play(sequence: list[Any]) -> tuple[dict[str, ManagedInstance], set[str]]:
    known: dict[str, ManagedInstance] = {}
    ended: set[str] = set()
    for message in sequence:
        if isinstance(message, TerminationMessage):
            outcome = handle_termination(message, cluster=CLUSTER, known=known, wall=1.0)
            known |= {each.id: each for each in outcome.instances}
            ended |= set(outcome.unknown)
        else:
            held = [each.held for each in known.values()]
            created = take(message, known=known.keys() | ended, held=held, inventory=Inventory(cpu_slots=2))
            known |= {each.id: each for each in created.instances}
    return known, ended


@given(st.lists(messages, max_size=8), st.data())
def test_copies_of_messages_change_nothing_and_no_order_revives_or_overbooks(
    sequence: list[Any], data: st.DataObject
) -> None:
    known, ended = play(sequence)
    doubled = []
    for message in sequence:
        doubled += [message, message]
    assert play(doubled) == (known, ended)
    shuffled, gone = play(data.draw(st.permutations(sequence)))
    terminated = {
        each for one in sequence if isinstance(one, TerminationMessage) for each in one.instance_ids
    }
    for found, dead in ((known, ended), (shuffled, gone)):
        live = [each for each in found.values() if not each.is_ending]
        assert not terminated & {each.id for each in live}
        assert sum(each.held.slots for each in found.values()) <= 2
        assert not dead & found.keys()


def test_the_order_keeps_everything_else_of_the_message() -> None:
    message = order(reason="more instances", max_request_concurrency=4)
    (instance,) = take(message).instances
    assert instance.order == message.replace(instance_ids=(instance.id,))
