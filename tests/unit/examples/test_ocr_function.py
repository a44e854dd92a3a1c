"""The OCR function itself: what it reads, and what it says to bad input."""

from __future__ import annotations

import io
import json
from contextlib import suppress

import pytest
from examples.demo.reading import make_reading, score
from examples.ocr.function import (
    MAX_BODY,
    MAX_PASSES,
    Refused,
    decode,
    parse_passes,
    read_body,
    recognise,
)
from examples.ocr.images import Sample, make_samples
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


def encoded(size: tuple[int, int], file_type: str = "PNG", mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, file_type)
    return data.getvalue()


@pytest.fixture(scope="module")
def plain() -> Sample:
    return next(sample for sample in make_samples() if sample.scene.name == "plain")


def test_reads_most_of_the_pictures() -> None:
    result = score([make_reading(sample, recognise(sample.data), 0.1) for sample in make_samples()])
    assert result.total == 12
    assert result.exact >= 5
    assert result.acceptable


def test_answer_says_what_stands_where(plain: Sample) -> None:
    answer = json.loads(json.dumps(recognise(plain.data, passes=2)))
    width, height = answer["image"]["width"], answer["image"]["height"]
    assert answer["text"].splitlines() == list(plain.scene.lines)
    assert [line["text"] for line in answer["lines"]] == list(plain.scene.lines)
    assert answer["passes"] == 2
    assert answer["milliseconds"]["model"] > 0
    for line in answer["lines"]:
        assert 0.5 < line["confidence"] <= 1
        assert len(line["box"]) == 4
        assert all(0 <= x <= width and 0 <= y <= height for x, y in line["box"])


def test_empty_page_is_an_answer_and_no_error() -> None:
    answer = recognise(encoded((400, 300)))
    assert (answer["text"], answer["lines"]) == ("", [])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_any_kind_of_png(mode: str) -> None:
    assert recognise(encoded((64, 64), mode=mode))["lines"] == []


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (25, 1), (1, 25), (60, 1500), (2500, 100)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    assert recognise(encoded(size))["image"] == {"width": size[0], "height": size[1]}


def test_stops_between_passes_when_nobody_waits(plain: Sample) -> None:
    assert recognise(plain.data, passes=MAX_PASSES, stop=lambda: True)["passes"] == 1


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, "send a PNG or JPEG"),
        (b"no picture at all", 422, "neither a PNG nor a JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "neither a PNG nor a JPEG"),
        (encoded((8, 8), "GIF"), 422, "neither a PNG nor a JPEG"),
        (encoded((200, 200))[:100], 422, "cannot be decoded"),
        (encoded((200, 200), "JPEG")[:400], 422, "cannot be decoded"),
        (encoded((200, 200))[:45] + b"\xff" * 30, 422, "cannot be decoded"),
        (encoded((6000, 5000), mode="1"), 422, "at most 25,000,000"),
        (encoded((20000, 20000), mode="1"), 422, "at most 25,000,000"),
        (encoded((260, 10)), 422, "one side is more than 25 times the other"),
    ],
)
def test_bad_pictures_are_refused_in_words(data: bytes, status: int, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        decode(data)
    assert refused.value.status == status


@settings(max_examples=200)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8), st.sampled_from(["PNG", "JPEG"]))
def test_a_damaged_picture_is_read_or_refused(at: int, damage: bytes, file_type: str) -> None:
    data = bytearray(encoded((40, 30), file_type))
    at %= len(data)
    data[at : at + len(damage)] = damage
    with suppress(Refused):
        assert decode(bytes(data)).mode == "RGB"


@pytest.mark.parametrize(("text", "passes"), [(None, 1), ("1", 1), ("12", 12), ("1000", 1000)])
def test_passes(text: str | None, passes: int) -> None:
    assert parse_passes(text) == passes


@pytest.mark.parametrize("text", ["", "0", "-1", "1001", "1.5", "many", "²", "9" * 5000, "1 "])
def test_bad_passes_are_refused(text: str) -> None:
    with pytest.raises(Refused, match="whole number from 1 to 1000") as refused:
        parse_passes(text)
    assert refused.value.status == 400


def test_body_is_read_up_to_the_limit() -> None:
    half = bytes(MAX_BODY // 2)
    assert len(read_body([half, half])) == MAX_BODY
    endless = iter([half, half, b"x"])
    with pytest.raises(Refused, match="16 MiB") as refused:
        read_body(endless)
    assert refused.value.status == 413
