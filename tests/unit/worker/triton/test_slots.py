"""Slots of a worker in front of Triton: bounds, directions, and where they settle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.run.tritonserver.slots import Totals, first_slots, next_slots, totals_of

COUNTS = st.integers(0, 10_000)
SECONDS = st.floats(0, 100)


def window(requests: int, queue: float, compute: float) -> Totals:
    """Return what requests have done that waited and ran for so many seconds each."""
    return Totals(requests, queue=queue * requests, compute_infer=compute * requests)


@given(
    st.integers(0, 1000), st.integers(1, 500), COUNTS, SECONDS, SECONDS, st.booleans(), st.integers(1, 300)
)
def test_slots_stay_between_a_full_batch_and_the_most(
    now: int, capacity: int, requests: int, queue: float, compute: float, used: bool, most: int
) -> None:
    found = next_slots(now, capacity, window(requests, queue, compute), used=used, most=most)

    assert min(capacity, most) <= found <= most
    assert first_slots(capacity, most) in range(1, most + 1)


@given(st.integers(8, 250), SECONDS, SECONDS)
def test_idle_time_never_adds_slots(now: int, queue: float, compute: float) -> None:
    assert next_slots(now, 8, window(100, queue, compute), used=False) <= now
    assert next_slots(now, 8, Totals(), used=True) == now


@given(st.integers(9, 256), st.floats(0.006, 10), st.floats(0.0001, 1))
def test_a_longer_queue_never_gives_more_slots(now: int, queue: float, compute: float) -> None:
    shorter = next_slots(now, 8, window(50, queue / 4, compute), used=True)

    assert next_slots(now, 8, window(50, queue, compute), used=True) <= shorter


def simulated(batch: int, execution: float, rounds: int = 40) -> int:
    """Return the slots after some seconds of more requests than the model can run."""
    slots = first_slots(batch)
    for _ in range(rounds):
        waiting = max(0, slots - batch)
        queue = waiting / batch * execution
        slots = next_slots(slots, batch, window(1000, queue, execution), used=True)
    return slots


def test_under_constant_load_triton_holds_a_few_batches() -> None:
    for batch in (1, 4, 16, 64):
        for execution in (0.01, 0.1, 1.0):
            assert batch < simulated(batch, execution) <= 4 * batch, (batch, execution)


def test_a_short_model_gets_more_slots_than_its_batches() -> None:
    assert simulated(1, 0.0001) > 16


def test_totals_are_those_of_all_versions_and_differences_survive_a_new_load() -> None:
    version = {
        "inference_count": "12",
        "execution_count": "4",
        "inference_stats": {
            "success": {"count": "10", "ns": "5000000000"},
            "fail": {"count": "1", "ns": "1"},
            "queue": {"count": "10", "ns": "1000000000"},
            "compute_infer": {"count": "10", "ns": "2000000000"},
        },
        "batch_stats": [{"batch_size": "3", "compute_infer": {"count": "4", "ns": "1"}}],
    }
    totals = totals_of({"model_stats": [version, version]})

    assert (totals.requests, totals.failures, totals.inferences, totals.executions) == (20, 2, 24, 8)
    assert (totals.duration, totals.queue, totals.compute, totals.batches) == (10.0, 2.0, 4.0, {3: 8})
    assert totals.since(totals).batches == {}
    assert totals.since(Totals()) == totals
    assert Totals(1, executions=1).since(totals) == Totals(1, executions=1)
