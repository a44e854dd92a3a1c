"""The state machine of one requested instance, and what is to be done in each state."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvcf_agent.state import transitions
from nvcf_agent.state.actions import Clean, Complete, Delete, Forget, GiveUp, Start, next_action, next_retry
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import (
    Category,
    ManagedInstance,
    Phase,
)
from nvcf_agent.state.transitions import RESTART_LIMIT, RESTARTS
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.reports import InstanceState
from tests.unit.agent.orders import order

SHARE = Share(devices=(3,))


def fresh() -> ManagedInstance:
    return transitions.acknowledged(transitions.accepted(order(), SHARE, wall=1.0))


def launched(instance: ManagedInstance, now: float = 0.0) -> ManagedInstance:
    instance = transitions.creating(instance, wall=now)
    return transitions.launched(instance, pid=7, health_port=8, log_path="/log", now=now, wall=now)


def running() -> ManagedInstance:
    return transitions.ready(launched(fresh()), 5.0)


def ended(instance: ManagedInstance, now: float = 0.0, reason: str = "exit code 1") -> ManagedInstance:
    return transitions.ended(instance, Category.CRASH, reason, now=now, wall=now)


def test_a_good_life() -> None:
    instance = fresh()
    assert instance.phase is Phase.PENDING
    instance = transitions.creating(instance, wall=2.0)
    assert instance.phase is Phase.CREATING
    instance = launched(instance)
    assert (instance.phase, instance.pid, instance.restarts) == (Phase.STARTING, 7, 0)
    instance = transitions.ready(instance, 5.0)
    assert (instance.phase, instance.ready_at) == (Phase.RUNNING, 5.0)
    instance = transitions.terminating(instance, "undeployed", 9.0, 6.0)
    assert (instance.phase, instance.grace, instance.draining_since) == (Phase.TERMINATING, 9.0, 6.0)
    assert instance.held_share == SHARE
    instance = ended(instance, 7.0, "exit code 0")
    assert (instance.phase, instance.reason, instance.category) == (Phase.COMPLETED, "undeployed", None)
    assert instance.cause is Cause.BY_USER
    assert instance.held_share == Share()


def test_nothing_starts_before_the_control_plane_has_answered() -> None:
    waiting = transitions.accepted(order(), SHARE, wall=1.0)
    assert next_action(waiting, 0.0, 1.0) is None
    assert next_action(transitions.acknowledged(waiting), 0.0, 1.0) == Start()


def test_a_crash_restarts_at_once_then_later_and_later_and_fails_in_the_end() -> None:
    instance, delays = fresh(), []
    for number in range(RESTART_LIMIT):
        now = float(number)
        instance = ended(launched(instance, now), now)
        delays.append(instance.retry_at - now)
    assert delays[:4] == [0.0, 0.5, 1.0, 2.0]
    assert (instance.phase, instance.category, instance.restarts) == (
        Phase.FAILED,
        Category.CRASH,
        RESTART_LIMIT - 1,
    )
    assert (instance.cause, instance.reason) == (Cause.CONTAINER_RESTART_LOOP, "exit code 1")


def test_between_two_tries_the_crash_is_readable() -> None:
    instance = ended(running())
    assert (instance.phase, instance.reason, instance.pid) == (Phase.CREATING, "exit code 1", None)
    assert launched(instance).reason == "exit code 1"
    assert transitions.ready(launched(instance), 9.0).reason is None


def test_a_long_run_makes_good_for_earlier_crashes() -> None:
    instance = fresh()
    for _ in range(RESTART_LIMIT - 1):
        instance = ended(launched(instance))
    instance = ended(launched(instance, 0.0), RESTARTS.stable_after)
    assert (instance.phase, instance.failures) == (Phase.CREATING, 1)


def test_a_postponed_start_is_no_restart_and_tried_again_soon() -> None:
    instance = transitions.postponed(transitions.creating(fresh(), wall=0.0), "no token", now=0.0, wall=0.0)
    assert (instance.phase, instance.reason, instance.failures) == (Phase.CREATING, "waiting: no token", 0)
    assert 0 < instance.retry_at <= 3
    instance = launched(instance)
    assert (instance.restarts, instance.reason) == (0, None)


def test_unready_is_not_dead() -> None:
    instance = transitions.unready(running(), "not ready any more (HTTP 503)", now=50.0, wall=50.0)
    assert (instance.phase, instance.has_process, instance.ready_at) == (Phase.STARTING, True, None)
    assert instance.reason == "waiting: not ready any more (HTTP 503)"
    assert next_action(instance, 70.0, 70.0, ready_timeout=30) is None
    assert isinstance(next_action(instance, 90.0, 90.0, ready_timeout=30), GiveUp)
    assert transitions.ready(instance, 60.0).reason is None


def test_one_that_never_gets_ready_is_given_up_once_and_fails() -> None:
    instance = launched(fresh(), 0.0)
    action = next_action(instance, 61.0, 61.0, ready_timeout=60)
    assert action == GiveUp("not ready after 60 s")
    instance = transitions.given_up(instance, action.give_up_reason)
    assert next_action(instance, 61.0, 61.0, ready_timeout=60) is None
    instance = ended(instance, reason="killed by SIGTERM")
    assert instance.reason == "not ready after 60 s\nkilled by SIGTERM"
    assert (instance.category, instance.cause) == (Category.NOT_READY, Cause.DEGRADED_WORKER)


def test_a_second_termination_can_only_shorten() -> None:
    instance = transitions.terminating(running(), "a", 30.0, 100.0)
    assert transitions.terminating(instance, "b", 60.0, 101.0) is instance
    assert transitions.terminating(instance, "b", 29.5, 101.0) is instance
    shorter = transitions.terminating(instance, "b", 5.0, 101.0, Cause.MAINTENANCE)
    assert (shorter.grace, shorter.reason, shorter.cause) == (5.0, "a", Cause.BY_USER)
    over = ended(instance)
    assert transitions.terminating(over, "b", 0.0, 102.0) is over


@pytest.mark.parametrize(
    ("make", "phase"),
    [
        (fresh, Phase.PENDING),
        (running, Phase.CREATING),
        (lambda: launched(fresh()), Phase.CREATING),
        (lambda: transitions.terminating(running(), "x", 1.0, 1.0), Phase.TERMINATING),
        (lambda: ended(transitions.terminating(running(), "x", 1.0, 1.0)), Phase.COMPLETED),
    ],
)
def test_after_the_agents_own_end(make: object, phase: Phase) -> None:
    assert callable(make)
    after = transitions.interrupted(make(), "the agent was restarted", 9.0)
    assert (after.phase, after.has_process, after.pid) == (phase, False, None)
    assert transitions.completed(after, 9.0).phase is (
        Phase.COMPLETED if phase is Phase.TERMINATING else phase
    )


def test_a_restarted_one_counts_its_new_process_as_a_restart() -> None:
    assert launched(transitions.interrupted(running(), "x", 9.0)).restarts == 1


def test_what_is_to_be_done() -> None:
    wall = 100.0
    assert next_action(fresh(), 0.0, wall) == Start()
    later = replace(transitions.creating(fresh(), wall=wall), retry_at=5.0)
    assert next_action(later, 4.0, wall) is None
    assert next_action(later, 5.0, wall) == Start()
    assert next_retry([later, running()], 4.0) == 1.0
    assert next_retry([running()], 4.0) == float("inf")
    assert next_action(running(), 0.0, wall) is None
    leaving = transitions.terminating(running(), "x", 7.0, wall)
    assert next_action(leaving, 0.0, wall) == Delete(7.0)
    assert next_action(transitions.terminating(fresh(), "x", 7.0, wall), 0.0, wall) == Complete()
    over = ended(leaving, wall)
    assert next_action(over, 0.0, wall) == Clean()
    over = replace(over, cleaned=True)
    assert next_action(over, 0.0, wall + 9999, keep_finished=300) is None
    over = replace(over, reported=InstanceState.TERMINATED)
    assert next_action(over, 0.0, wall + 300, keep_finished=300) is None
    assert next_action(over, 0.0, wall + 301, keep_finished=300) == Forget()
    assert next_action(over, 0.0, 59.0, keep_finished=-50) is None
    for_ever = replace(over, order=over.order.replace(expires_at=None))
    assert next_action(for_ever, 0.0, wall + 3600, keep_finished=300) is None
    assert next_action(for_ever, 0.0, wall + 3601, keep_finished=300) == Forget()


def test_reasons_are_bounded() -> None:
    instance = transitions.rejected(running(), Category.OUT_OF_MEMORY, "x" * 9000, 1.0)
    assert len(instance.reason or "") == 4000


class Life(RuleBasedStateMachine):
    """One instance through any order of events; no event comes from a process that does not exist."""

    def __init__(self) -> None:
        super().__init__()
        self.instance = fresh()
        self.now = 0.0
        self.ordered_to_end = False
        self.final: ManagedInstance | None = None

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: not self.instance.is_ending and not self.instance.has_process)
    @rule()
    def start(self) -> None:
        self.instance = launched(self.instance, self.now)

    @precondition(lambda self: not self.instance.is_ending and not self.instance.has_process)
    @rule()
    def postpone(self) -> None:
        self.instance = transitions.postponed(self.instance, "no token", now=self.now, wall=self.now)

    @rule()
    def become_ready(self) -> None:
        self.instance = transitions.ready(self.instance, self.now)

    @rule()
    def become_unready(self) -> None:
        self.instance = transitions.unready(self.instance, "HTTP 503", now=self.now, wall=self.now)

    @precondition(lambda self: self.instance.has_process)
    @rule()
    def die(self) -> None:
        self.instance = ended(self.instance, self.now)

    @rule(grace=st.floats(0, 60))
    def terminate(self, grace: float) -> None:
        self.ordered_to_end = self.ordered_to_end or not self.instance.is_final
        self.instance = transitions.terminating(self.instance, "x", grace, self.now)

    @rule()
    def agent_dies(self) -> None:
        self.instance = transitions.interrupted(self.instance, "the agent was restarted", self.now)

    @rule()
    def complete(self) -> None:
        self.instance = transitions.completed(self.instance, self.now)

    @invariant()
    def final_is_final(self) -> None:
        if self.final is not None:
            assert self.instance.phase is self.final.phase
            assert self.instance.reason == self.final.reason
        elif self.instance.is_final:
            self.final = self.instance

    @invariant()
    def an_instance_ordered_to_end_is_ending(self) -> None:
        assert not self.ordered_to_end or self.instance.is_ending

    @invariant()
    def running_means_a_process_and_failed_means_a_reason(self) -> None:
        instance = self.instance
        assert instance.phase is not Phase.RUNNING or instance.has_process
        assert (instance.phase is Phase.FAILED) == (instance.category is not None)
        assert instance.phase is not Phase.FAILED or instance.reason

    @invariant()
    def it_holds_its_share_while_anything_can_run(self) -> None:
        gone = self.instance.is_final and not self.instance.has_process
        assert self.instance.held_share == (Share() if gone else SHARE)

    @invariant()
    def its_end_has_one_cause(self) -> None:
        assert self.instance.is_ending == (self.instance.cause is not None)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40)


@given(st.lists(st.sampled_from(["die", "ready", "terminate"]), max_size=12))
def test_doing_what_is_to_be_done_always_ends_where_it_should(events: list[str]) -> None:
    """Whatever happens first: left alone, an instance ends up running or final, and then rests."""
    instance, now = fresh(), 0.0
    terminated = False
    for event in [*events, *[""] * 20]:
        now += 40.0
        match next_action(instance, now, now):
            case Start():
                instance = launched(instance, now)
            case Delete():
                instance = ended(instance, now)
            case Complete():
                instance = transitions.completed(instance, now)
            case Clean():
                instance = replace(instance, cleaned=True)
            case _:
                pass
        if event == "die" and instance.has_process:
            instance = ended(instance, now)
        elif event == "terminate" and not terminated:
            instance, terminated = transitions.terminating(instance, "x", 1.0, now), True
        else:
            instance = transitions.ready(instance, now)
    if terminated or instance.phase is Phase.FAILED:
        assert instance.is_final
        assert terminated or events.count("die") >= transitions.RESTART_LIMIT
    else:
        assert instance.phase is Phase.RUNNING
