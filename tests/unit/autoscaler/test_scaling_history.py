"""The history of a version's load: what is kept of samples, and what a simulation makes of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.controller.history import LONGEST_GAP, VERSIONS_PER_ACCOUNT, Sample, ScalingHistory
from nvcf_autoscaler.errors import InvalidTrace
from nvcf_autoscaler.simulate.advise import WIDTH, outcomes, report
from nvcf_autoscaler.simulate.recorded import Recorded, recorded, startup_times
from nvcf_proto.budget import MIB
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.scaling_history import HOUR, MAX_STARTUPS, HistoryBlock, Step, history_stream_config

VERSION = "11111111-1111-4111-8111-111111111111"
BEGIN = 500_000.0 * HOUR


class _NoBroker:
    """Stands in for the broker where nothing is sent."""

    async def request(self, subject: str, payload: bytes = b"", **options: object) -> object:
        raise AssertionError(subject)


def block(steps: tuple[Step, ...] = (), number: int = 0, **changes: object) -> HistoryBlock:
    """A block of the first hour."""
    version_id = f"11111111-1111-4111-8111-{number:012d}" if number else VERSION
    values: dict[str, object] = {
        "version_id": version_id, "function_id": VERSION, "name": "f", "nca_id": "me",
        "hour": 500_000, "steps": steps, "max_instances": 4, "gpu": "H100", **changes,
    }  # fmt: skip
    return HistoryBlock(**values)  # type: ignore[arg-type]


def kept(history: ScalingHistory) -> dict[int, HistoryBlock]:
    """Take what is to be written, by hour."""
    return {hour: pending.take() for (_, hour), pending in history._blocks.items()}


def history() -> ScalingHistory:
    return ScalingHistory(_NoBroker())  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.floats(0.1, LONGEST_GAP), st.integers(0, 50), st.integers(0, 3)), max_size=40))
def test_nothing_between_samples_is_lost_or_counted_twice(changes: list[tuple[float, int, int]]) -> None:
    made = history()
    sample = Sample(BEGIN, 7, 3, 100.0, 2, 1)
    made.add(sample, block(), {})
    waited = held = 0.0
    for passed, came, devices in changes:
        after = Sample(sample.at + passed, sample.arrivals + came, sample.completions + came,
                       sample.busy + passed, came, devices)  # fmt: skip
        waited += sample.queued * passed
        held += sample.devices * passed
        made.add(after, block(), {})
        sample = after
    steps = [step for each in kept(made).values() for step in each.steps]
    assert sum(step[1] for step in steps) == sample.arrivals - 7
    assert sum(step[2] for step in steps) == sample.completions - 3
    assert math.isclose(sum(step[3] for step in steps), sample.busy - 100.0, abs_tol=0.1)
    assert math.isclose(sum(step[4] for step in steps), waited, abs_tol=0.1)
    assert math.isclose(sum(step[5] for step in steps), held, abs_tol=0.1)


def test_time_under_another_leader_does_not_count() -> None:
    made = history()
    made.add(Sample(BEGIN, 0, 0, 0.0, 0, 1), block(), {})
    made.add(Sample(BEGIN + LONGEST_GAP + 1, 900, 900, 900.0, 0, 1), block(), {})
    made.begin_anew()
    made.add(Sample(BEGIN + LONGEST_GAP + 2, 1900, 1900, 900.0, 0, 1), block(), {})
    assert kept(made) == {}


def test_each_start_up_is_kept_once() -> None:
    made = history()
    for second in range(4):
        startups = {f"V.{number}": 10.0 + number for number in range(second)}
        made.add(Sample(BEGIN + second, 0, 0, 0.0, 0, 0), block(), startups)
    assert kept(made)[500_000].startups == (10.0, 11.0, 12.0)


def test_an_account_has_so_many_versions_in_an_hour_and_others_still_have_theirs() -> None:
    made = history()
    for number in range(1, VERSIONS_PER_ACCOUNT + 20):
        for at in (BEGIN, BEGIN + 1):
            made.add(Sample(at, 0, 0, 0.0, 0, 1), block(number=number), {})
    for at in (BEGIN, BEGIN + 1):
        made.add(Sample(at, 0, 0, 0.0, 0, 1), block(nca_id="other"), {})
    assert len(made._blocks) == VERSIONS_PER_ACCOUNT + 1
    assert (VERSION, 500_000) in made._blocks


def test_blocks_of_one_hour_add_up_and_survive_their_stored_form() -> None:
    one = block(((0, 1, 0, 0.5, 0.0, 1.0), (7, 2, 1, 0.0, 0.0, 0.0)), startups=(8.0,) * MAX_STARTUPS)
    other = block(((7, 1, 2, 1.5, 0.25, 5.0),), startups=(9.0,), slots=4)
    whole = one.merged(other)
    assert whole.steps == ((0, 1, 0, 0.5, 0.0, 1.0), (7, 3, 3, 1.5, 0.25, 5.0))
    assert (whole.slots, len(whole.startups), whole.startups[-1]) == (4, MAX_STARTUPS, 9.0)
    assert HistoryBlock.from_bytes(whole.to_bytes()) == whole
    for wrong in (b"", b"no", whole.to_json()):
        with pytest.raises(InvalidRecord):
            HistoryBlock.from_bytes(wrong)


def test_a_full_hour_fits_in_a_message() -> None:
    steps = tuple((number, 987, 986, 4321.123 + number, 33.717, 160.125) for number in range(720))
    assert len(block(steps).to_bytes()) < 16 * 1024


def test_the_history_leaves_room_in_a_small_broker_account() -> None:
    assert history_stream_config(1, 64 * MIB)["max_bytes"] == 8 * MIB
    assert history_stream_config(1)["max_bytes"] == 64 * MIB


def _recorded() -> Recorded:
    burst: Step = (10, 20, 0, 30.0, 60.0, 20.0)
    end: Step = (11, 0, 20, 70.0, 0.0, 20.0)
    short: Step = (300, 100, 100, 10.0, 0.0, 5.0)
    return recorded([block((burst, end, short), startups=(9.0, 10.0, 11.0), slots=2, gpus=2)])


def test_a_simulated_function_has_the_recorded_requests_service_times_and_start_ups() -> None:
    found = _recorded()
    function = found.function
    assert len(function.arrivals) == 120
    assert all(0 <= at < 5 for at in function.arrivals[:20])
    assert set(function.durations[:20]) == {5.0}, "the burst's own mean"
    assert set(function.durations[20:]) == {0.1}
    (spec,) = function.specifications
    assert (spec.max_instances, spec.max_request_concurrency, spec.gpus) == (4, 2, 2)
    assert spec.startup.median == pytest.approx(10.0)
    assert (found.gpu_seconds, found.mean_wait) == (45.0, 0.5)
    with pytest.raises(InvalidTrace):
        recorded([block()])
    assert startup_times([]).median == 30.0


def test_advice_fits_80_columns_and_names_the_present_setting_first() -> None:
    found = _recorded()
    tried = outcomes(found)
    assert [each.current for each in tried] == [True] + [False] * (len(tried) - 1)
    assert len({each.setting for each in tried}) == len(tried)
    text = report(found, tried, 2.5)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "a*  balanced, 0 to 4, 2 at a time" in text
    assert "cost" in text
    assert report(found, tried).count("cost") == 0


def test_advice_about_large_numbers_fits_80_columns_too() -> None:
    steps = tuple((number, 40, 40, 90.0, 0.0, 500.0) for number in range(720))
    found = recorded([block(steps, max_instances=1000, slots=64, profile="economy", name="n" * 40)])
    assert max(map(len, report(found, outcomes(found), 1234.5).splitlines())) <= WIDTH
