"""Which time limit counts, and when a worker has lost its slots."""

from __future__ import annotations

from typing import Any

import pytest

from nvcf_worker.errors import BadInput, ConfigurationError, HandlerError
from nvcf_worker.function.time_limit import TimeLimit, configured, of_request
from nvcf_worker.run.overtime import Overdue

OURS = TimeLimit(60.0, "ours")


@pytest.mark.parametrize(
    ("argument", "variable", "seconds"),
    [(None, "", None), (30, "", 30.0), (None, "60", 60.0), (30, "60", 30.0), (90.5, "60", 60.0)],
)
def test_the_lower_one_of_function_and_deployment(
    argument: float | None, variable: str, seconds: float | None
) -> None:
    found = configured(argument, {"NVCF_MAX_EXECUTION_SECONDS": variable})
    assert (None if found is None else found.seconds) == seconds


@pytest.mark.parametrize("argument", [0, -1, 86_401, True, "30", float("nan"), float("inf")])
def test_impossible_arguments(argument: Any) -> None:
    with pytest.raises(HandlerError, match="time_limit"):
        configured(argument, {})


@pytest.mark.parametrize("text", ["0", "-1", "86401", "1.5", "soon", "9" * 30])
def test_impossible_variables_and_headers(text: str) -> None:
    with pytest.raises(ConfigurationError, match="NVCF_MAX_EXECUTION_SECONDS"):
        configured(None, {"NVCF_MAX_EXECUTION_SECONDS": text})
    with pytest.raises(BadInput, match="NVCF-MAX-EXECUTION-SECONDS"):
        of_request(None, [("nvcf-max-execution-seconds", text)])


def test_a_caller_can_only_shorten() -> None:
    header = "nvcf-max-execution-seconds"
    assert of_request(OURS, [("a", "b")]) is OURS
    assert of_request(OURS, [(header, "120")]) is OURS
    assert of_request(None, []) is None
    for limit in (OURS, None):
        found = of_request(limit, [("accept", "*/*"), (header, "30")])
        assert found is not None
        assert found.seconds == 30.0
        assert "caller" in str(found)


class Late:
    def __init__(self, seconds: float) -> None:
        self.limit = TimeLimit(seconds, "ours")


@pytest.mark.parametrize(
    ("lost", "slots", "seconds", "waited", "unhealthy"),
    [
        (1, 1, 1.0, 0.9, False),
        (1, 1, 1.0, 1.1, True),
        (1, 2, 1.0, 9.0, False),
        (2, 3, 1.0, 9.0, True),
        (1, 1, 3600.0, 29.0, False),
        (1, 1, 3600.0, 31.0, True),
        (0, 1, 1.0, 9.0, False),
    ],
)
def test_more_than_half_of_the_slots(
    lost: int, slots: int, seconds: float, waited: float, unhealthy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvcf_worker.run.overtime.time.monotonic", lambda: 100.0)
    overdue = Overdue()
    late: list[Any] = [Late(seconds) for _ in range(lost)]
    for each in late:
        overdue.add(each)
    assert (overdue.unhealthy(slots, 100.0 + waited) is not None) == unhealthy
    for each in late:
        overdue.discard(each)
    assert overdue.unhealthy(slots, 1e9) is None
    assert overdue.count == lost
