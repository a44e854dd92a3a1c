"""Counts of kept answers: over replicas, over time, and after a removal."""

from __future__ import annotations

from typing import Any, cast

import pytest

from nvcf_gateway.quotas.kept_answers import OVERHEAD, SLOTS, Kept, KeptAnswers, Ledger


class Clock:
    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


def counts(clock: Clock, gateway_id: str = "g") -> KeptAnswers:
    return KeptAnswers(cast(Any, None), gateway_id, 24 * 3600.0, now=clock)


def test_an_answer_counts_for_its_life() -> None:
    clock = Clock()
    kept = counts(clock)
    kept.add("a", 10)
    kept.add("a", 20)
    kept.add("b", 5)
    assert kept.used("a") == Kept(2, 30 + 2 * OVERHEAD)
    assert kept.used("c") == Kept()
    clock.time += 24 * 3600.0
    assert kept.used("a").answers == 2, "not a moment less"
    clock.time += 3600.0
    assert kept.used("a") == Kept()


def test_a_removed_answer_counts_no_longer() -> None:
    kept = counts(Clock())
    kept.add("a", 10)
    kept.remove("a", 10)
    assert kept.used("a") == Kept()
    kept.remove("a", 10)
    assert kept.used("a") == Kept()


def test_what_other_replicas_store_counts() -> None:
    clock = Clock()
    kept, other = counts(clock), counts(clock, "other")
    other.add("a", 10)
    kept.add("a", 1)
    (name,) = other._own
    ledger = Ledger.decode(other._own[name].encode())
    kept._changed(f"{name}.other", ledger)
    kept._changed(f"{name}.g", ledger)
    assert kept.used("a").answers == 2, "the own counts are known already"
    kept._changed(f"{name}.other", None)
    assert kept.used("a").answers == 1


def test_ledgers_stay_small() -> None:
    ledger = Ledger()
    for slot in range(1000):
        ledger.add(slot, 1, 1)
        ledger.total(slot)
    assert ledger.total(999).answers == SLOTS + 1


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b'{"a": 1}', b'{"1": 1}', b'{"1": ["x", 1]}'])
def test_nonsense_is_no_ledger(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 # whatever rejects it
        Ledger.decode(data)
