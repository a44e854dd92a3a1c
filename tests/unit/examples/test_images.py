"""The test pictures: always the same, readable by any PNG or JPEG reader, with the truth beside them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from examples.ocr.images import SCENES, Sample, Scene, main, make_samples, similarity
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return make_samples()


def test_same_seed_same_bytes(samples: list[Sample]) -> None:
    assert make_samples() == samples


def test_one_picture_does_not_depend_on_the_others(samples: list[Sample]) -> None:
    assert make_samples(SCENES[-3:]) == samples[-3:]


def test_another_seed_gives_another_grain() -> None:
    grainy = (Scene("grainy", ("x",), noise=40),)
    assert make_samples(grainy, seed=1) != make_samples(grainy, seed=2)


def test_pictures_are_what_they_say(samples: list[Sample]) -> None:
    for sample in samples:
        picture = Image.open(io.BytesIO(sample.data))
        picture.load()
        assert picture.get_format_mimetype() == sample.content_type
        assert sample.file_name.endswith(sample.content_type.rpartition("/")[2])


def test_scenes_cover_what_the_demo_promises() -> None:
    assert len({scene.name for scene in SCENES}) == len(SCENES)
    assert len({scene.size for scene in SCENES if not scene.degrees and not scene.noise}) >= 3
    assert any(0 < abs(scene.degrees) < 45 for scene in SCENES)
    assert any(scene.noise for scene in SCENES)


def test_ink_is_on_the_paper_and_not_cut_off(samples: list[Sample]) -> None:
    for sample in samples:
        if sample.scene.noise or sample.scene.file_type != "PNG":
            continue
        grey = Image.open(io.BytesIO(sample.data)).convert("L")
        drawn = grey.point([255 if level < 128 else 0 for level in range(256)]).getbbox()
        assert drawn is not None
        left, top, right, bottom = drawn
        assert min(left, top, grey.width - right, grey.height - bottom) > 8


@pytest.mark.parametrize(
    ("truth", "recognised", "expected"),
    [
        ("a b", "a b", 1.0),
        ("a\nb", "a b", 1.0),
        ("a b", "", 0.0),
        ("abcd", "abcx", 0.75),
        ("a b c d", "abcd", 8 / 11),
        ("", "", 1.0),
    ],
)
def test_similarity(truth: str, recognised: str, expected: float) -> None:
    assert similarity(truth, recognised) == pytest.approx(expected)


@given(st.text(), st.text())
def test_similarity_is_a_share_and_one_only_for_the_same_words(truth: str, recognised: str) -> None:
    value = similarity(truth, recognised)
    assert 0 <= value <= 1
    assert (value == 1) == (truth.split() == recognised.split())


def test_command_writes_pictures_and_truths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out.startswith("12 pictures in ")
    pictures = [path for path in (tmp_path / "new").iterdir() if path.suffix in (".png", ".jpeg")]
    assert len(pictures) == len(SCENES)
    truths = {picture.with_suffix(".txt").read_text(encoding="utf-8") for picture in pictures}
    assert truths == {scene.truth + "\n" for scene in SCENES}


def test_command_without_a_folder_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
