"""The simulator: every request is served once, GPU time adds up, equal seeds give equal results."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nvcf_autoscaler.errors import InvalidTrace
from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.simulate.__main__ import main
from nvcf_autoscaler.simulate.compare import POLICIES, compare, policy_named
from nvcf_autoscaler.simulate.engine import simulate, simulate_shared
from nvcf_autoscaler.simulate.families import FAMILIES, make_day, make_function
from nvcf_autoscaler.simulate.model import SimulatedFunction, SimulatedSpecification, StartupTimes
from nvcf_autoscaler.simulate.policies.base import NEVER, Answer, Fixed, Policy
from nvcf_autoscaler.simulate.policies.oracle import oracle
from nvcf_autoscaler.simulate.pool import Pool
from nvcf_autoscaler.simulate.trace import read_csv, write_csv


def function(
    arrivals: list[float],
    durations: list[float],
    *,
    slots: int = 1,
    most: int = 8,
    startup: float = 10.0,
    horizon: float = 1000.0,
    slo: float = 5.0,
) -> SimulatedFunction:
    spec = SimulatedSpecification(
        max_instances=most, max_request_concurrency=slots, startup=StartupTimes(startup, 0.0)
    )
    return SimulatedFunction("f", array("d", arrivals), array("d", durations), horizon, (spec,), "test", slo)


@st.composite
def functions(draw: st.DrawFn) -> SimulatedFunction:
    arrivals = sorted(draw(st.lists(st.floats(0, 900), max_size=40)))
    durations = [draw(st.floats(0.01, 60)) for _ in arrivals]
    return function(
        arrivals,
        durations,
        slots=draw(st.sampled_from([1, 2, 5])),
        most=draw(st.integers(1, 6)),
        startup=draw(st.floats(0.5, 80)),
    )


@given(functions(), st.sampled_from([*POLICIES, "fixed:2"]))
@examples(max_examples=120)
def test_every_request_is_served_once_and_gpu_time_covers_the_work(one: SimulatedFunction, name: str) -> None:
    result = simulate(one, policy_named(name), 3, trace=True)

    assert len(result.waits) == len(one.arrivals)
    assert all(0 <= wait < NEVER for wait in result.waits)
    # The integral of requests in flight is the sum of their durations: none served twice, none left out.
    assert result.work_seconds == pytest.approx(sum(one.durations), abs=1e-6)
    slots = one.specifications[0].max_request_concurrency
    assert result.gpu_seconds * slots >= result.work_seconds - 1e-6
    assert 0 <= result.stops <= result.starts
    assert result.cold <= len(one.arrivals)
    assert all(count <= one.specifications[0].max_instances for _, count in result.changes)


@given(functions(), st.integers(1, 6))
@examples(max_examples=100)
def test_nobody_serves_without_any_wait_for_less_than_the_oracle(one: SimulatedFunction, count: int) -> None:
    """With no wait allowed and room for all, the oracle's plan is the true minimum."""
    strict = function(
        [100.0 + arrival for arrival in one.arrivals],
        list(one.durations),
        slots=one.specifications[0].max_request_concurrency,
        most=len(one.arrivals) + 1,
        startup=one.specifications[0].startup.median,
        slo=1e-9,
    )
    limit = oracle(strict)

    assert all(wait <= 1e-8 for wait in limit.waits)
    result = simulate(strict, Fixed(instances=count), 1)
    if all(wait == 0 for wait in result.waits):
        assert limit.gpu_seconds <= result.gpu_seconds + 1e-6


def test_the_oracle_on_a_case_worked_out_by_hand() -> None:
    """Two requests far apart: two starts. Two close together: one start and the time between."""
    far = oracle(function([100.0, 500.0], [2.0, 2.0], startup=10.0, slo=1e-9))
    close = oracle(function([100.0, 105.0], [2.0, 2.0], startup=10.0, slo=1e-9))
    half = oracle(function([100.0, 500.0], [2.0, 2.0], startup=10.0, slo=1e-9), attainment=0.5)

    assert far.gpu_seconds == pytest.approx(2 * 12.0)
    assert close.gpu_seconds == pytest.approx(10.0 + 7.0)
    assert half.gpu_seconds == pytest.approx(10.0 + 4.0)


def test_a_wait_is_the_start_up_time_when_there_is_no_instance() -> None:
    result = simulate(function([50.0], [1.0], startup=10.0), policy_named("ours"), 1)

    assert result.waits[0] == pytest.approx(10.1)
    assert result.cold == 1


def test_a_stopped_instance_finishes_what_it_serves() -> None:
    class Impatient(Policy):
        name, reaction, wake_after_idle = "impatient", 0.0, NEVER

        def start(self, function: SimulatedFunction) -> Impatient:
            return self

        def decide(self, now: float, seen: Observation) -> Answer:
            return Answer((1 if now < 20 else 0,), 20.0 if now < 20 else NEVER, False)

    result = simulate(function([15.0], [100.0], startup=5.0), Impatient(), 1)

    assert list(result.waits) == [0.0]
    assert result.gpu_seconds == pytest.approx(115.0)


@pytest.mark.parametrize("name", [*POLICIES])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_equal_seeds_give_equal_results(name: str, family: str) -> None:
    first = simulate(make_function(family, 5, 0, 3600.0), policy_named(name), 7)
    second = simulate(make_function(family, 5, 0, 3600.0), policy_named(name), 7)

    assert first == second


def test_shared_gpus_are_never_given_out_twice_and_come_back() -> None:
    """Three functions, GPUs for less than they want: all are served in the end, by what there is."""
    busy = [make_function(family, 5, 0, 1800.0) for family in ("bursts", "hourly", "batches")]

    results = simulate_shared(busy, policy_named("ours"), 1, {"gpu": 2}, trace=True)

    for one in results:
        assert all(count <= 2 for _, count in one.changes)
        assert all(wait < NEVER for wait in one.waits)
    assert sum(len(one.waits) for one in results) == sum(len(one.arrivals) for one in busy)


def test_a_pool_counts_what_it_gives() -> None:
    pool = Pool({"gpu": 5})

    assert pool.acquire("gpu", 4)
    assert not pool.acquire("gpu", 2)
    assert pool.room("gpu", 1) == 1
    pool.release("gpu", 4)
    assert pool.room("gpu", 2) == 2
    assert pool.room("other", 1) is None
    assert pool.acquire("other", 99)


def test_ours_costs_less_and_waits_less_than_the_others_over_a_day_of_many_functions() -> None:
    """The goal in small; docs/operate/scaling.md has it in full."""
    found = compare("day", make_day(60, 4, 6 * 3600.0), ("ours", "nvcf", "kpa", "keda"))

    for name in ("kpa", "keda"):
        assert found.ours_beats(name) == (True, True)
    assert found.ours_beats("nvcf")[1]


def test_traces_are_written_and_read(tmp_path: Path) -> None:
    one = make_function("poisson", 1, 0, 1800.0)
    path = tmp_path / "trace.csv"
    write_csv(path, [one])

    (read,) = read_csv(path, one.specifications, horizon=1800.0)

    assert read.name == one.name
    assert list(read.arrivals) == pytest.approx(list(one.arrivals), abs=1e-3)
    assert list(read.durations) == pytest.approx(list(one.durations), abs=1e-3)


def test_tokens_stand_in_for_a_duration(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,duration,tokens\n5,,100\n1,2,\n")

    (read,) = read_csv(path, (SimulatedSpecification(),), seconds_per_token=0.05)

    assert list(read.arrivals) == [1.0, 5.0]
    assert list(read.durations) == pytest.approx([2.0, 5.0])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("when,duration\n1,2\n", "'time'"),
        ("time\n1\n", "'duration' or 'tokens'"),
        ("time,duration\n1,soon\n", "line 2, column duration: 'soon' is not a number"),
        ("time,duration\n-1,2\n", "at least 0"),
        ("time,tokens\n1,2\n", "--seconds-per-token"),
        ("time,duration\n", "no requests"),
    ],
)
def test_a_bad_trace_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)

    assert main(["replay", str(path)]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidTrace, match="known: ours"):
        policy_named("magic")
    with pytest.raises(InvalidTrace, match="known: poisson"):
        make_function("magic", 1, 1)


def test_the_command_prints_the_table_and_writes_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    arguments = [
        "families",
        "--families",
        "rare",
        "--functions",
        "1",
        "--hours",
        "1",
        "--output",
        str(tmp_path),
    ]

    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for name in ("ours", "nvcf", "kpa", "keda", "fixed", "oracle"):
        assert f"\n{name} " in shown
    assert (tmp_path / "rare.json").exists()
    assert (tmp_path / "rare.png").stat().st_size > 10_000
