"""A short chaos run: processes are killed under load. The long form is `make chaos`."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.chaos.plan import WEIGHTS, events
from tests.chaos.run import run

SECONDS = 25.0
SEED = 3


def test_same_seed_makes_the_same_faults() -> None:
    first, second = (list(itertools.islice(events(7), 50)) for _ in range(2))
    assert first == second
    assert {event.harm for event in first[: len(WEIGHTS)]} == set(WEIGHTS), "each kind of fault is early"


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("chaos")
async def test_no_call_is_lost_and_none_has_two_results(tmp_path: Path) -> None:
    counts, text = await run(tmp_path, SECONDS, SEED, nodes=1, callers=6)
    print(f"\nseed {SEED}: {text}")  # noqa: T201 - the counts are what this run is for
    assert counts.sent > 0, text
    assert counts.lost == [], text
    assert counts.wrong == [], text
