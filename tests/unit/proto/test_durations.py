"""ISO 8601 durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto.durations import DURATION_PATTERN, duration_seconds, duration_text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("PT10S", 10.0),
        ("PT0.25S", 0.25),
        ("PT1H30M", 5400.0),
        ("P1D", 86_400.0),
        ("P1DT2H3M4.5S", 93_784.5),
        ("PT0S", 0.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "P", "PT", "P1DT", "10", "10S", "1h", "PT-1S", "P1Y", "P1M", "PT1.S", "pt1s", "PT1S\n"],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ISO 8601"):
        duration_seconds(text)


@given(st.from_regex(DURATION_PATTERN, fullmatch=True))
def test_whatever_the_pattern_allows_has_a_length(text: str) -> None:
    assert duration_seconds(text) >= 0


@given(st.floats(0.001, 30 * 24 * 3600.0))
def test_seconds_become_a_text_and_come_back(seconds: float) -> None:
    assert duration_seconds(duration_text(seconds)) == pytest.approx(seconds, abs=0.0006)
