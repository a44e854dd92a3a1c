"""Messages: twice, late, in any order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.machine_inventory import MachineInventory
from nvcf_agent.state.managed_instance import Category, ManagedInstance, Phase
from nvcf_agent.state.message_handlers import (
    Created,
    Ignored,
    Known,
    NoRoom,
    by_own_clock,
    handle_creation,
    handle_termination,
)
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.messages import TerminationMessage
from tests.unit.agent.orders import order, termination

INVENTORY = MachineInventory(cpu_slots=3)


def take(message: Any, **changes: Any) -> Any:
    given: dict[str, Any] = {"inventory": INVENTORY, "held": [], "known": set(), "ended": set(), "wall": 1.0}
    return handle_creation(message, **{**given, **changes})


def test_a_request_makes_its_instances_with_nvidias_ids() -> None:
    created = take(order("r", instance_count=2))
    assert [each.id for each in created.instances] == ["0-sr-r", "1-sr-r"]
    assert [each.share for each in created.instances] == [Share(slots=1)] * 2
    assert not any(each.acknowledged for each in created.instances)
    (one,) = take(order("sr-x")).instances
    assert one.id == "0-sr-x"


def test_what_fits_later_waits_and_what_never_fits_is_refused() -> None:
    full = [Share(slots=1)] * 3
    assert take(order(), held=full) == NoRoom("CPU", "1 CPU slots wanted, 0 of 3 free")
    (refused,) = take(order(gpu="H100")).instances
    assert (refused.phase, refused.category, refused.cause) == (
        Phase.FAILED,
        Category.UNSUPPORTED,
        Cause.TERMINAL_ERROR,
    )
    assert not refused.acknowledged
    (unreadable,) = take(order(environment="%%")).instances
    assert "environment" in (unreadable.reason or "")


def test_what_has_expired_is_dropped_for_its_order_was_repeated_or_given_up() -> None:
    late = take(order(), wall=61.0)
    assert late == Ignored("its message expired 1 s ago")
    assert isinstance(take(order(expires_at=None), wall=1e9).instances[0], ManagedInstance)


@pytest.mark.parametrize("wall", [1e9, -1e9])
def test_the_times_of_another_clock_are_moved_to_the_agents(wall: float) -> None:
    seen = by_own_clock(order(), 59.0, wall)
    assert (seen.issued_at, seen.expires_at) == (wall - 59, wall + 1)
    unmoved = order()
    assert by_own_clock(unmoved, None, wall) is unmoved


def test_a_known_or_ended_request_makes_nothing() -> None:
    assert take(order("r"), known={"r"}) == Known()
    assert isinstance(take(order("r"), ended={"0-sr-r"}), Ignored)
    created = take(order("r", instance_count=2), ended={"0-sr-r"})
    assert [each.id for each in created.instances] == ["1-sr-r"]


@pytest.mark.parametrize("text", ["../../etc", "a/b", "x" * 101, "", ".", "a b", "a\n"])
def test_what_is_no_id_never_becomes_a_file_name(text: str) -> None:
    members = order("r").to_dict() | {"requestId": text}
    with pytest.raises(InvalidRecord):
        type(order()).from_dict(members)


def end(message: TerminationMessage, known: dict[str, ManagedInstance], wall: float = 2.0) -> Any:
    return handle_termination(message, known=known, wall=wall, default_grace=5.0)


def test_a_termination_ends_what_is_known_and_remembers_the_rest() -> None:
    (instance,) = take(order("r")).instances
    ended = end(termination("r", instance.id, "1-sr-r", "1-sr-r"), {instance.id: instance})
    (after,) = ended.instances
    assert (after.phase, after.grace, after.cause) == (Phase.TERMINATING, 5.0, Cause.BY_USER)
    assert after.reason == "the control plane asked for it"
    assert ended.unknown == ("1-sr-r",)
    assert end(termination("r", instance.id), {instance.id: after}, 3.0).instances == ()


def test_a_task_has_the_grace_period_of_its_message() -> None:
    (instance,) = take(order("r", termination_grace_period_duration="PT10M")).instances
    (after,) = end(termination("r", instance.id), {instance.id: instance}).instances
    assert after.grace == 600.0


IDS = [f"r{number}" for number in range(4)]
messages = st.one_of(
    st.sampled_from(IDS).map(order),
    st.lists(st.sampled_from(IDS), min_size=1, max_size=4).map(
        lambda ids: termination(ids[0], *(f"0-sr-{each}" for each in ids))
    ),
)


def play(sequence: list[Any]) -> tuple[dict[str, ManagedInstance], set[str]]:
    """Handle messages in order; what finds no room is not delivered again."""
    known: dict[str, ManagedInstance] = {}
    ended: set[str] = set()
    for message in sequence:
        if isinstance(message, TerminationMessage):
            outcome = end(message, known, 1.0)
            known |= {each.id: each for each in outcome.instances}
            ended |= set(outcome.unknown)
        else:
            created = take(
                message,
                known={each.request_id for each in known.values()},
                ended=ended,
                held=[each.held_share for each in known.values()],
                inventory=MachineInventory(cpu_slots=2),
            )
            if isinstance(created, Created):
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
        assert sum(each.held_share.slots for each in found.values()) <= 2
        assert not dead & found.keys()
        assert all(each.id not in dead for each in live)
    assert not {each.id for each in shuffled.values() if not each.is_ending} & terminated & gone


def test_the_order_keeps_everything_of_the_message() -> None:
    message = order(reason="more instances")
    (instance,) = take(message).instances
    assert instance.order == message
    assert transitions.acknowledged(instance).acknowledged
