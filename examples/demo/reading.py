"""Compare recognised texts with the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from examples.demo.failure import DemoFailure
from examples.ocr.images import Sample, similarity

NEARLY = 0.9
# The pictures are the same everywhere and only a few are hard: below this it is not the pictures' fault.
LEAST_GOOD_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of one picture. Times are in milliseconds."""

    name: str
    truth: str
    recognised: str
    similarity: float
    round_trip_ms: float
    model_ms: float
    instance: str


@dataclass(frozen=True, slots=True)
class Score:
    exact: int
    nearly: int
    missed: int

    @property
    def total(self) -> int:
        return self.exact + self.nearly + self.missed

    @property
    def acceptable(self) -> bool:
        return self.exact + self.nearly >= LEAST_GOOD_SHARE * self.total

    def __str__(self) -> str:
        counts = f"{self.exact} exact, {self.nearly} nearly (90 % alike), {self.missed} not"
        return f"{self.total} pictures: {counts}"


def make_reading(sample: Sample, answer: Any, seconds: float) -> Reading:
    """Return the result of a picture. Raises `DemoFailure` if the response is not from examples/ocr."""
    try:
        text = str(answer["text"])
        return Reading(
            name=sample.scene.name,
            truth=sample.scene.truth,
            recognised=text,
            similarity=similarity(sample.scene.truth, text),
            round_trip_ms=seconds * 1000,
            model_ms=float(answer["milliseconds"]["model"]),
            instance=str(answer["worker"]["instance"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DemoFailure(f"the OCR function's answer cannot be understood ({error!r})") from error


def score(readings: Sequence[Reading]) -> Score:
    exact = sum(reading.similarity == 1 for reading in readings)
    nearly = sum(NEARLY <= reading.similarity < 1 for reading in readings)
    return Score(exact, nearly, len(readings) - exact - nearly)


def median(values: Sequence[float]) -> float:
    """Return the upper median, or 0 for no values."""
    return sorted(values)[len(values) // 2] if values else 0.0


def passes_for(seconds: float, model_ms: float, limit: int) -> int:
    """Return the number of passes that keep a worker busy for some time."""
    return max(2, min(limit, round(seconds * 1000 / max(model_ms, 1.0))))
