"""Leader election: never two leaders at once, with a clock of the test and a bucket in memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.controller.lease import RENEW_EVERY, SAFE_SHARE, TTL, LeaseRecord, ObservedLease

A, B = "a", "b"


def test_a_free_lease_is_taken() -> None:
    assert ObservedLease(A).may_take(None, 0.0)


def test_ones_own_lease_is_renewed() -> None:
    observed = ObservedLease(A)
    assert observed.may_take((1, LeaseRecord(A, 1)), 0.0)


def test_a_lease_that_does_not_change_is_taken_over() -> None:
    observed = ObservedLease(B)
    held = (1, LeaseRecord(A, 1))
    assert not observed.may_take(held, 10.0)
    assert not observed.may_take(held, 10.0 + TTL - 0.01)
    assert observed.may_take(held, 10.0 + TTL)


def test_each_renewal_starts_the_wait_anew() -> None:
    observed = ObservedLease(B)
    for number in range(20):
        assert not observed.may_take((number, LeaseRecord(A, number)), number * RENEW_EVERY)


def test_a_take_over_is_done_well_within_5_seconds() -> None:
    # The renewal is noticed late, and its end too.
    assert RENEW_EVERY + TTL + RENEW_EVERY < 4.0


def test_a_leader_stops_before_another_may_begin() -> None:
    # Its time counts from before it wrote, the other's from when it saw what was written.
    assert SAFE_SHARE < 1.0
    assert RENEW_EVERY < TTL * SAFE_SHARE


@given(
    st.lists(st.tuples(st.sampled_from((A, B)), st.floats(0.01, 2.0), st.booleans()), min_size=1, max_size=60)
)
def test_two_never_lead_at_once(steps: list[tuple[str, float, bool]]) -> None:
    """Replicas try in any order and at any pace; now and then a write is lost after it was allowed."""
    turns = {A: ObservedLease(A), B: ObservedLease(B)}
    until = {A: float("-inf"), B: float("-inf")}
    stored: tuple[int, LeaseRecord] | None = None
    now = 0.0
    for who, passed, written in steps:
        now += passed
        if not turns[who].may_take(stored, now) or not written:
            continue
        revision = 1 if stored is None else stored[0] + 1
        stored = (revision, LeaseRecord(who, revision))
        turns[who].wrote(revision, now)
        until[who] = now + TTL * SAFE_SHARE
        assert not (now < until[A] and now < until[B])
