"""The simulator: callers that wait for answers, delays of images and nodes, where GPU time went."""

from __future__ import annotations

import csv
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nvcf_autoscaler.simulate.__main__ import main
from nvcf_autoscaler.simulate.compare import POLICIES, policy_named
from nvcf_autoscaler.simulate.engine import simulate
from nvcf_autoscaler.simulate.model import SimulatedFunction, SimulatedSpecification, StartupTimes
from nvcf_autoscaler.simulate.policies.base import NEVER, Fixed


def _function(
    arrivals: list[float],
    durations: list[float],
    *,
    callers: int = 0,
    startup: StartupTimes | None = None,
    most: int = 8,
) -> SimulatedFunction:
    spec = SimulatedSpecification(max_instances=most, startup=startup or StartupTimes(10.0, 0.0))
    return SimulatedFunction(
        "f", array("d", arrivals), array("d", durations), 1000.0, (spec,), callers=callers
    )


def test_a_caller_that_waited_comes_later_with_its_next_request() -> None:
    """One caller, cold: its first wait of 10 s delays all that follows, and it thinks for 3 s each time."""
    one = _function([0.0, 5.0, 10.0], [2.0, 2.0, 2.0], callers=1)

    result = simulate(one, Fixed(instances=1), 1, trace=True)

    assert list(result.waits) == pytest.approx([10.0, 0.0, 0.0])
    # Created at 0, ready at 10; then 2 s of each 5 s are busy, until the horizon.
    assert result.starting_seconds == pytest.approx(10.0)
    assert result.serving_seconds == pytest.approx(6.0)
    assert result.idle_seconds == pytest.approx(1000.0 - 16.0)


@given(
    st.lists(st.floats(0, 900), min_size=1, max_size=40).map(sorted),
    st.floats(0.01, 60),
    st.integers(1, 6),
    st.sampled_from([*POLICIES, "fixed:2"]),
)
@examples(max_examples=80, deadline=None)
def test_callers_send_each_request_once_and_gpu_time_adds_up(
    arrivals: list[float], seconds: float, callers: int, name: str
) -> None:
    one = _function(arrivals, [seconds] * len(arrivals), callers=callers)

    result = simulate(one, policy_named(name), 3)

    assert all(0 <= wait < NEVER for wait in result.waits)
    assert result.work_seconds == pytest.approx(sum(one.durations), abs=1e-6)
    # With one slot an instance serves for as long as its requests take.
    assert result.serving_seconds == pytest.approx(result.work_seconds, abs=1e-6)
    parts = result.starting_seconds + result.serving_seconds + result.idle_seconds
    assert parts == pytest.approx(result.gpu_seconds)


def test_an_image_is_pulled_once_and_a_node_is_provisioned_each_time() -> None:
    startup = StartupTimes(10.0, 0.0, pull=100.0, provision=1000.0, nodes=1)

    assert startup.delay(1, 0) == 100.0
    assert startup.delay(1, 1) == 0.0
    assert startup.delay(2, 1) == 1100.0
    assert startup.delay(2, 2) == 1000.0
    first, second = simulate(
        _function([0.0, 900.0], [1.0, 1.0], startup=StartupTimes(10.0, 0.0, pull=100.0), most=1),
        policy_named("nvcf"),
        1,
    ).waits
    assert first > 100.0
    assert second < 60.0


def test_the_command_writes_a_row_for_each_function_with_its_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    arguments = "families --families jobs --functions 2 --hours 1 --no-oracle --policies ours,kpa --price 2.5"

    assert main([*arguments.split(), "--pull", "20", "--output", str(tmp_path)]) == 0

    assert "cost" in capsys.readouterr().out
    with (tmp_path / "jobs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["policy"] for row in rows] == ["ours", "ours", "kpa", "kpa"]
    for row in rows:
        parts = [float(row[name]) for name in ("servingHours", "idleHours", "startingHours")]
        assert sum(parts) == pytest.approx(float(row["gpuHours"]), abs=1e-4)
        assert float(row["cost"]) == pytest.approx(2.5 * float(row["gpuHours"]), abs=1e-3)
