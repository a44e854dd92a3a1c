"""Checkpoints of a task: whole at any moment, bounded, found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcf_worker.tasks.checkpoints import Checkpoints

PARTS = ("model", "optimizer", "deep/step")

# Makes checkpoint 1 to 4 of a folder and keeps 2. It is killed before its operation number `at` on files.
KILLED = """
import os, signal, sys
from pathlib import Path
from nvcf_worker.tasks.checkpoints import Checkpoints

source, store, at = Path(sys.argv[1]), Checkpoints(Path(sys.argv[2])), int(sys.argv[3])
seen = 0

def hook(event, args):
    global seen
    if event.startswith(("os.", "open", "shutil.", "fcntl.", "tempfile.")) and event != "os.kill":
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

def make(number):
    for part in ("model", "optimizer", "deep/step"):
        (source / part).write_text(str(number) * 100)
    store.add(source, keep=2)
    os.write(1, str(number).encode())

make(1)
sys.addaudithook(hook)
for number in (2, 3, 4):
    make(number)
"""


def fill(folder: Path, number: int) -> None:
    """Write all parts of a state."""
    for part in PARTS:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_text(str(number) * 100)


def state(checkpoint: Path | None) -> int:
    """Return the number in a checkpoint, all parts of which must be whole and of one state."""
    assert checkpoint is not None
    [text] = {(checkpoint / part).read_text() for part in PARTS}
    assert len(text) == 100
    return int(text[0])


def test_a_process_killed_at_any_operation_leaves_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "state"
    at, kills = 0, 0
    while True:
        at += 3
        store = tmp_path / f"store-{at}"
        fill(source, 0)
        process = subprocess.run(
            [sys.executable, "-c", KILLED, source, store, str(at)], capture_output=True, timeout=60
        )
        told = int(process.stdout.decode()[-1])
        found = Checkpoints(store)
        # What was told is there. One more may be: its process died after it was made.
        assert state(found.newest()) in (told, told + 1)
        assert all(state(each) for each in found.all())
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr
        kills += 1
        # The next run goes on, and removes what the killed one left behind.
        fill(source, 9)
        found.add(source, keep=2)
        assert state(found.newest()) == 9
        assert len(found.all()) == 2
        left = {each.name for each in store.iterdir()} - {each.name for each in found.all()}
        assert left == {".lock"}
    assert kills > 20


@given(keeps=st.lists(st.integers(1, 4), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_the_newest_ones_stay_in_their_order(keeps: list[int]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        source, store = Path(directory) / "state.bin", Checkpoints(Path(directory) / "checkpoints")
        expected: list[str] = []
        for number, keep in enumerate(keeps):
            source.write_text(str(number))
            assert store.add(source, keep).read_text() == str(number)
            expected = [*expected, str(number)][-keep:]
            assert [each.read_text() for each in store.all()] == expected
        newest = store.newest()
        assert newest is not None
        assert newest.name.endswith("-state.bin")


def test_without_a_checkpoint_there_is_none_and_no_folder(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "checkpoints").newest() is None
    assert not (tmp_path / "checkpoints").exists()


def test_a_failed_checkpoint_leaves_the_earlier_ones(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints")
    (tmp_path / "state").write_text("first")
    kept = store.add(tmp_path / "state")
    with pytest.raises(FileNotFoundError):
        store.add(tmp_path / "missing")
    with pytest.raises(ValueError, match="at least 1"):
        store.add(tmp_path / "state", keep=0)
    assert store.all() == [kept]


def test_foreign_files_and_read_only_folders_do_no_harm(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").mkdir()
    for name in ("99999999", "notes.txt", "1-short"):
        (tmp_path / "checkpoints" / name).touch()
    fill(tmp_path / "state", 1)
    os.chmod(tmp_path / "state" / "deep", 0o500)
    os.chmod(tmp_path / "state", 0o500)
    for _ in range(3):
        kept = store.add(tmp_path / "state", keep=1)
        assert store.all() == [kept]
        assert state(kept) == 1


def test_checkpoints_of_several_threads_are_all_made(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints")
    for number in range(8):
        (tmp_path / f"state-{number}").write_text(str(number))
    threads = [
        threading.Thread(target=store.add, args=(tmp_path / f"state-{number}", 20)) for number in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert sorted(each.read_text() for each in store.all()) == [str(number) for number in range(8)]
