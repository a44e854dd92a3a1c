"""A task that runs a model over a folder of inputs, and survives being killed.

    nvcf task run examples/digits/classify.py --env INPUTS=/data/inputs --env MODEL=/data/model.npz

INPUTS is a folder of pictures, MODEL a file of fine_tune.py. Results: `predictions.jsonl`, with one line for
each file: its name and the digit, or why it could not be read. A file that is no picture does not end the
task. Lines are written batch by batch; a run that is started again leaves out the files that have one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from network import Network
from pictures import pixels
from PIL import Image

from nvcf_worker import Task, task

BATCH = 16


def known_names(predictions: Path) -> set[str]:
    """Return the files that have a line; half a line, of a process that was killed, is removed."""
    try:
        data = predictions.read_bytes()
    except FileNotFoundError:
        return set()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(predictions, len(whole))
    return {str(json.loads(line)["file"]) for line in whole.splitlines()}


def read(network: Network, files: list[Path]) -> list[dict[str, Any]]:
    """Return a line for each file of a batch."""
    lines: list[dict[str, Any]] = [{"file": each.name} for each in files]
    rows, readable = [], []
    for path, line in zip(files, lines, strict=True):
        try:
            with Image.open(path) as picture:
                rows.append(pixels(picture))
            readable.append(line)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            line["error"] = f"{type(error).__name__}: {error}"[:200]
    if rows:
        for line, chances in zip(readable, network.chances(np.stack(rows)), strict=True):
            line |= {"digit": int(chances.argmax()), "confidence": round(float(chances.max()), 4)}
    return lines


def main(run: Task) -> None:
    """Read all files that have no line yet."""
    network = Network.load(Path(os.environ["MODEL"]))
    files = sorted(each for each in Path(os.environ["INPUTS"]).iterdir() if each.is_file())
    predictions = run.results_dir / "predictions.jsonl"
    known = known_names(predictions)
    left = [each for each in files if each.name not in known]
    with predictions.open("a") as output:
        for start in range(0, len(left), BATCH):
            if run.cancelled:
                break
            lines = read(network, left[start : start + BATCH])
            output.write("".join(json.dumps(line) + "\n" for line in lines))
            output.flush()
            done = len(known) + start + len(lines)
            run.progress(100 * done / len(files), metadata={"files": done})


if __name__ == "__main__":
    os.environ.setdefault("NVCT_RESULTS_DIR", "results")
    os.environ.setdefault("SHARED_CONFIG_DIR", "results/.shared")
    task(main)
