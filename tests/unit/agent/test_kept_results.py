"""The folders of results that an agent keeps: for how long, and how much."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nvcf_agent.backends.results import KEPT_PART, KEPT_SECONDS, KeptResults

SIZE = 64 * 1024
NOW = 1_800_000_000.0


def ended(folder: Path) -> Path:
    """Return the folder of a task that has just ended with a result."""
    found = folder / "results"
    found.mkdir()
    (found / "weights").write_bytes(b"w" * SIZE)
    return found


def test_the_oldest_results_go_and_the_newest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = shutil.disk_usage(tmp_path)._replace(total=KEPT_PART * 2 * SIZE)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    kept = KeptResults(tmp_path / "kept")
    for number in range(4):
        assert kept.keep(ended(tmp_path), f"i-{number}", NOW + number)
    assert {each.name for each in kept.folder.iterdir()} == {"i-2", "i-3"}
    # An agent that was started again measures anew; one folder alone may be more than fits.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(total=SIZE))
    again = KeptResults(tmp_path / "kept")
    assert again.keep(ended(tmp_path), "i-4", NOW + 4)
    assert {each.name for each in kept.folder.iterdir()} == {"i-4"}


def test_results_go_after_a_week(tmp_path: Path) -> None:
    kept = KeptResults(tmp_path / "kept")
    kept.keep(ended(tmp_path), "old", NOW)
    kept.keep(ended(tmp_path), "new", NOW + KEPT_SECONDS + 1)
    assert {each.name for each in kept.folder.iterdir()} == {"new"}


def test_what_a_task_left_instead_of_results_is_not_kept(tmp_path: Path) -> None:
    kept = KeptResults(tmp_path / "kept")
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "empty").mkdir()
    for name in ("link", "empty", "missing"):
        assert kept.keep(tmp_path / name, name, NOW)
    assert not kept.folder.exists()


def test_results_that_cannot_be_moved_stay(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file is in the way")
    found = ended(tmp_path)
    assert not KeptResults(tmp_path / "kept").keep(found, "i", NOW)
    assert (found / "weights").exists()
