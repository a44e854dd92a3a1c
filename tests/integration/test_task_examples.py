"""The tasks of examples/digits: they learn, and go on where they were when they are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.waiting import eventually

DIGITS = Path(__file__).parent.parent.parent / "examples" / "digits"


def start(file: str, folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start a task with its own folder of results."""
    environment = {
        **os.environ,
        "NVCT_RESULTS_DIR": str(folder),
        "NVCT_PROGRESS_FILE_PATH": str(folder / "progress"),
        "SHARED_CONFIG_DIR": str(folder / "shared"),
        "OPENBLAS_NUM_THREADS": "1",  # sums have the same order in each run
        **variables,
    }
    command = [sys.executable, str(DIGITS / file)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def draw(folder: Path) -> None:
    """Make 1200 pictures."""
    subprocess.run([sys.executable, DIGITS / "pictures.py", folder, "1200"], check=True, timeout=120)


def progress(folder: Path) -> dict[str, Any]:
    """Return what the task has reported."""
    file = folder / "progress"
    return json.loads(file.read_bytes()) if file.exists() else {"percentComplete": 0}


async def kill_at(process: subprocess.Popen[bytes], folder: Path, percent: int) -> None:
    """Kill a task as soon as it has reported so much; it must not be through by then."""
    try:
        await eventually(
            lambda: progress(folder)["percentComplete"] >= percent or process.poll() is not None,
            f"the task is at {percent} %",
            interval=0.005,
        )
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


async def test_fine_tuning_that_is_killed_twice_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start("fine_tune.py", whole)
    try:
        assert undisturbed.wait(120) == 0
    finally:
        undisturbed.kill()
        undisturbed.communicate()
    for percent in (10, 40):
        await kill_at(start("fine_tune.py", killed), killed, percent)
    last = start("fine_tune.py", killed)
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0
    assert b"goes on at step" in output
    assert len(list((killed / "checkpoints").glob("0*"))) == 3
    with np.load(whole / "model.npz") as one, np.load(killed / "model.npz") as other:
        assert int(one["step"]) == 900
        assert all(np.array_equal(one[name], other[name]) for name in one.files)
    assert progress(killed)["percentComplete"] == 100
    # 75 % without fine-tuning
    assert progress(killed)["metadata"]["tilted digits right"] > 0.9


async def test_inference_over_a_folder_that_is_killed_reads_each_file_once(tmp_path: Path) -> None:
    tuned, read, inputs = tmp_path / "tuned", tmp_path / "read", tmp_path / "inputs"
    tuning = start("fine_tune.py", tuned)
    try:
        assert tuning.wait(120) == 0
    finally:
        tuning.kill()
        tuning.communicate()
    draw(inputs)
    (inputs / "0500-broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    variables = {"INPUTS": str(inputs), "MODEL": str(tuned / "model.npz")}
    await kill_at(start("classify.py", read, **variables), read, 10)
    with (read / "predictions.jsonl").open("a") as file:
        file.write('{"file": "half a li')
    last = start("classify.py", read, **variables)
    last.communicate(timeout=120)
    assert last.returncode == 0
    lines = [json.loads(line) for line in (read / "predictions.jsonl").read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == sorted(each.name for each in inputs.iterdir())
    [broken] = [line for line in lines if "error" in line]
    assert broken["file"] == "0500-broken.png"
    right = sum(line["file"][5] == str(line.get("digit")) for line in lines)
    assert right > 0.9 * 1200
