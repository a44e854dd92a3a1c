"""How the demo judges what was read."""

from __future__ import annotations

from typing import Any

import pytest
from examples.demo.failure import DemoFailure
from examples.demo.reading import Reading, Score, make_reading, median, passes_for, score
from examples.ocr.images import Sample, Scene
from hypothesis import given
from hypothesis import strategies as st

SAMPLE = Sample(Scene("sign", ("WAY", "OUT")), b"")
ANSWER: dict[str, Any] = {
    "text": "WAY\nOUT",
    "milliseconds": {"model": 12.5},
    "worker": {"instance": "one", "pid": 1},
}


def reading(alike: float) -> Reading:
    return Reading("x", "x", "x", alike, 10.0, 5.0, "one")


def test_reading_of_a_good_answer() -> None:
    assert make_reading(SAMPLE, ANSWER, 0.02) == Reading(
        "sign", "WAY\nOUT", "WAY\nOUT", 1.0, 20.0, 12.5, "one"
    )


@pytest.mark.parametrize("answer", [None, [], {}, {**ANSWER, "milliseconds": None}, {**ANSWER, "worker": {}}])
def test_answer_of_another_form_is_a_failure_in_words(answer: Any) -> None:
    with pytest.raises(DemoFailure, match="cannot be understood"):
        make_reading(SAMPLE, answer, 0.02)


@pytest.mark.parametrize(
    ("alike", "expected", "acceptable"),
    [
        ([1.0] * 10, Score(10, 0, 0), True),
        ([1.0, 0.95, 0.9, 0.89], Score(1, 2, 1), True),
        ([1.0] * 7 + [0.0] * 3, Score(7, 0, 3), True),
        ([1.0] * 6 + [0.0] * 4, Score(6, 0, 4), False),
    ],
)
def test_score(alike: list[float], expected: Score, acceptable: bool) -> None:
    result = score([reading(value) for value in alike])
    assert result == expected
    assert result.acceptable == acceptable


@given(st.lists(st.floats(0, 1), max_size=20))
def test_every_picture_is_counted_once(alike: list[float]) -> None:
    assert score([reading(value) for value in alike]).total == len(alike)


@pytest.mark.parametrize(("values", "expected"), [([], 0.0), ([3.0], 3.0), ([1.0, 9.0, 2.0], 2.0)])
def test_median(values: list[float], expected: float) -> None:
    assert median(values) == expected


@pytest.mark.parametrize(
    ("seconds", "model_ms", "expected"),
    [(4, 100, 40), (4, 8000, 2), (4, 0, 1000), (4, 1, 1000), (4, 4.2, 952)],
)
def test_passes_for(seconds: float, model_ms: float, expected: int) -> None:
    assert passes_for(seconds, model_ms, 1000) == expected
