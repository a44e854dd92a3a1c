"""A short chaos run: everything is killed while callers call. The long form is `make chaos`."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.chaos.plan import WEIGHTS, events
from tests.chaos.run import run

SECONDS = 25.0
SEED = 3


def test_the_same_seed_does_the_same_harm() -> None:
    first, second = (list(itertools.islice(events(7), 50)) for _ in range(2))
    assert first == second
    assert {event.harm for event in first[: len(WEIGHTS)]} == set(WEIGHTS), "a short run has seen all"


@pytest.mark.timeout(240)
@pytest.mark.xdist_group("chaos")
async def test_nothing_is_lost_and_nothing_answered_twice(tmp_path: Path) -> None:
    counts, text = await run(tmp_path, SECONDS, SEED, nodes=1, callers=6)
    print(f"\nseed {SEED}: {text}")  # noqa: T201 - the counts are what this run is for
    assert counts.sent > 0, text
    assert counts.lost == [], text
    assert counts.wrong == [], text
