"""The disk budget: what a start may use, and how it is divided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto.budget import GIB, LEAST_BUDGET, MIB, SHRINKS_TO, DiskBudget, TooLittleDisk, choose_budget
from nvcf_proto.stores import STORES


@pytest.mark.parametrize(
    ("wanted", "kept", "total", "free", "expected"),
    [
        (None, None, 200 * GIB, 150 * GIB, 100 * GIB),
        (None, None, 200 * GIB, 7 * GIB, 6 * GIB),
        (None, None, GIB, GIB, 512 * MIB),
        (None, 6 * GIB, 200 * GIB, 0, 6 * GIB),
        (20 * GIB, None, 200 * GIB, 21 * GIB, 20 * GIB),
        (20 * GIB, 30 * GIB, 200 * GIB, 0, 24 * GIB),
        (40 * GIB, 30 * GIB, 200 * GIB, 50 * GIB, 40 * GIB),
    ],
)
def test_the_budget_of_a_start(
    wanted: int | None, kept: int | None, total: int, free: int, expected: int
) -> None:
    assert choose_budget(wanted, kept, disk_total=total, disk_free=free).total == expected


@pytest.mark.parametrize(("wanted", "free"), [(None, 300 * MIB), (MIB, 50 * GIB), (60 * GIB, 50 * GIB)])
def test_too_small_a_disk_is_an_error_with_the_way_out(wanted: int | None, free: int) -> None:
    with pytest.raises(TooLittleDisk, match="--data-max"):
        choose_budget(wanted, None, disk_total=100 * GIB, disk_free=free)


@given(st.integers(LEAST_BUDGET, 10_000 * GIB), st.integers(1, 8))
def test_the_shares_leave_room_for_queues(total: int, regions: int) -> None:
    budget = DiskBudget(total)
    assert budget.control + budget.data == total
    reserved = (
        sum(store.bounds(budget.data, parts=regions).get("max_bytes", 0) for store in STORES if store.share)
        * regions
    )
    # All bounds still fit after the greatest step to a smaller budget.
    assert reserved <= max(DiskBudget(int(total * SHRINKS_TO)).data, LEAST_BUDGET * 0.75)
