"""Decisions of tasks: settings, timing, progress, outcome, the archive of results."""

from __future__ import annotations

import io
import json
import math
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from nvcf_worker.errors import ConfigurationError
from nvcf_worker.process import exit_reason as exits
from nvcf_worker.process.exit_reason import ExitReason
from nvcf_worker.tasks.context import ProgressFile, checked_name, rfc3339
from nvcf_worker.tasks.lifetime import Due, Stop, Timing, outcome
from nvcf_worker.tasks.progress_rules import BrokenRule, ProgressRules
from nvcf_worker.tasks.settings import read_settings
from nvcf_worker.tasks.upload import archive_chunks, archive_size, list_files


def test_settings_of_the_platform() -> None:
    found = read_settings(
        {
            "NVCT_RESULTS_DIR": "/r",
            "NVCT_PROGRESS_FILE_PATH": "/p/progress",
            "NVCT_TASK_ID": "1",
            "NVCT_TASK_NAME": "train",
            "NVCT_MAX_RUNTIME_DURATION": "PT1H",
            "NVCT_TERMINATION_GRACE_PERIOD_DURATION": "PT1M",
            "NVCT_RESULTS_UPLOAD_URL": "https://store/x",
            "SHARED_CONFIG_DIR": "/s",
        }
    )
    assert (found.results_dir, found.progress_file) == (Path("/r"), Path("/p/progress"))
    assert (found.id, found.name, found.shared_dir) == ("1", "train", Path("/s"))
    assert (found.max_seconds, found.grace_seconds, found.heartbeat_seconds) == (3600, 60, 30)
    assert read_settings({}, max_seconds=5, grace_seconds=0).max_seconds == 5
    assert read_settings({}).max_seconds is None


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"NVCT_MAX_RUNTIME_DURATION": "long"}, "NVCT_MAX_RUNTIME_DURATION"),
        ({"NVCT_MAX_RUNTIME_DURATION": "0"}, "above 0"),
        ({"NVCT_HEARTBEAT_INTERVAL": "0"}, "above 0"),
        ({"NVCT_RESULTS_UPLOAD_URL": "ftp://x", "NVCT_RESULTS_DIR": "/r"}, "http"),
        ({"NVCT_RESULTS_UPLOAD_URL": "http://x"}, "NVCT_RESULTS_DIR"),
    ],
)
def test_unusable_settings(environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        read_settings(environ)


def test_timers_of_a_task() -> None:
    timing = Timing(100, heartbeat=30, max_seconds=70, grace=10)
    assert (timing.due(100), timing.pause(100)) == ([], 30)
    assert timing.due(130) == [Due.HEARTBEAT]
    assert timing.pause(130) == 30
    assert timing.due(161) == [Due.HEARTBEAT]
    assert timing.pause(161) == 9
    assert timing.due(170) == [Due.STOP]
    timing.stop(170)
    timing.stop(175)
    assert (timing.due(179), timing.pause(179)) == ([], 1)
    assert timing.due(180) == [Due.KILL]


@given(
    st.floats(1, 50),
    st.one_of(st.none(), st.floats(1, 200)),
    st.floats(0, 50),
    st.lists(st.floats(0, 40), max_size=60),
)
def test_nothing_is_due_before_the_pause_is_over(
    heartbeat: float, limit: float | None, grace: float, steps: list[float]
) -> None:
    timing, now = Timing(0, heartbeat=heartbeat, max_seconds=limit, grace=grace), 0.0
    for step in steps:
        pause = timing.pause(now)
        assert pause == 0 or timing.due(now + min(step, pause * 0.999)) == []
        now += step
        due = timing.due(now)
        stop_at = math.inf if limit is None else limit
        assert Due.STOP not in due or now >= stop_at
        if Due.STOP in due:
            event("stopped")
            timing.stop(now)


@pytest.mark.parametrize(
    ("stop", "error", "code", "category"),
    [
        (None, None, 0, "completed"),
        (None, ValueError("x"), 1, "failed"),
        (None, SystemExit(0), 0, "completed"),
        (None, SystemExit(None), 0, "completed"),
        (None, SystemExit(7), 7, "failed"),
        (None, SystemExit("words"), 1, "failed"),
        (Stop.TERMINATED, None, 143, "terminated"),
        (Stop.TERMINATED, ValueError("x"), 143, "terminated"),
        (Stop.MAX_RUNTIME, None, 124, "max-runtime-exceeded"),
    ],
)
def test_outcomes(stop: Stop | None, error: BaseException | None, code: int, category: str) -> None:
    found = outcome(stop, "why", error)
    assert (found.code, found.category) == (code, category)
    assert bool(found.text)


def test_the_progress_file(tmp_path: Path) -> None:
    times = iter([1.25, 2.0])
    path = tmp_path / "sub" / "progress"
    progress = ProgressFile(path, "id-1", "", lambda: next(times), repeats=True)
    progress.heartbeat()
    assert not path.exists()
    progress.update(12.5, "epoch-1", {"loss": 0.5})
    progress.update(50)
    assert json.loads(path.read_bytes()) == {
        "taskId": "id-1", "percentComplete": 50, "name": "epoch-1",
        "lastUpdatedAt": "1970-01-01T00:00:02.000Z", "metadata": {"loss": 0.5},
    }  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == ["progress"]


@pytest.mark.parametrize("percent", [-1, 100.1, float("nan"), True])
def test_impossible_progress(percent: float) -> None:
    with pytest.raises(ValueError, match="0 to 100"):
        ProgressFile(None, "", "").update(percent)


REPORTS = st.lists(
    st.tuples(
        st.floats(0, 100), st.sampled_from([None, "a", "b", "epoch-1"]), st.sampled_from([None, {"x": 1}])
    ),
    max_size=12,
)


@given(REPORTS, st.booleans(), st.sampled_from(["", "a", "complete", "my task/é"]))
def test_no_report_breaks_a_rule_of_the_platform(
    tmp_path_factory: Any, reports: list[Any], upload: bool, name: str
) -> None:
    path = tmp_path_factory.mktemp("task") / "progress"
    progress = ProgressFile(path, "id-1", name, repeats=not upload)
    peer = ProgressRules(upload=upload)
    for percent, result, metadata in reports:
        progress.update(percent, result, metadata)
        peer.read(path.read_bytes(), time.time())
    progress.complete()
    last = peer.read(path.read_bytes(), time.time())
    assert last is None or last.percent == 100
    assert peer.percent == 100


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"percentComplete": 0}, "1 to 100"),
        ({"percentComplete": 12.5}, "1 to 100"),
        ({"percentComplete": 101}, "1 to 100"),
        ({"percentComplete": True}, "1 to 100"),
        ({"percentComplete": 49}, "falls"),
        ({"percentComplete": 60, "name": "one"}, "twice in a row"),
        ({"percentComplete": 60, "name": "a/b"}, "cannot name"),
        ({"percentComplete": 60, "lastUpdatedAt": "yesterday"}, "RFC 3339"),
        ({"percentComplete": 60, "lastUpdatedAt": "2026-01-01T11:54:59Z"}, "not updated"),
    ],
)
def test_writes_that_break_a_rule(members: dict[str, Any], words: str) -> None:
    now = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()
    first = {"percentComplete": 50, "name": "one", "lastUpdatedAt": "2026-01-01T12:00:00Z"}
    rules = ProgressRules(upload=True)
    assert rules.read(json.dumps(first).encode(), now) is not None
    assert rules.read(json.dumps(first).encode(), now) is None
    with pytest.raises(BrokenRule, match=words):
        rules.read(json.dumps(first | {"name": "two"} | members).encode(), now)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "x" * 191])
def test_names_that_are_no_folder(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        checked_name(name)


def test_metadata_must_be_json() -> None:
    progress = ProgressFile(None, "", "")
    with pytest.raises((TypeError, ValueError)):
        progress.update(1, metadata={"x": object()})
    assert progress.percent <= 1


def test_times_are_written_as_rfc_3339() -> None:
    assert rfc3339(1_700_000_000.5) == "2023-11-14T22:13:20.500Z"


def test_exit_reasons_on_disk(tmp_path: Path) -> None:
    reason = ExitReason(4, "not-ready", "the server was not ready: é")
    exits.record(tmp_path / "shared", reason)
    written = json.loads((tmp_path / "shared" / exits.FILE_NAME).read_bytes())
    assert ExitReason(**written) == reason
    file = tmp_path / "file"
    file.touch()
    exits.record(file, reason)  # logged, not raised


@given(st.dictionaries(st.sampled_from(["a", "b/c", "b/d", "é", "e/f/g"]), st.binary(max_size=2000)))
def test_the_archive_has_the_announced_size(tmp_path_factory: Any, files: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("results")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "link").symlink_to("a")
    listed = list_files(folder)
    data = b"".join(archive_chunks(folder, listed))
    assert len(data) == archive_size(folder, listed)
    with zipfile.ZipFile(io.BytesIO(data)) as made:
        assert made.testzip() is None
        assert {name: made.read(name) for name in made.namelist()} == files


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"long enough")
    listed = list_files(tmp_path)
    (tmp_path / "a").write_bytes(b"short")
    with pytest.raises(OSError, match="has changed"):
        list(archive_chunks(tmp_path, listed))
