"""A task: runs to its end, tells how far it is, leaves results, saves its state when it has to stop.

    python examples/task/task.py

Estimates pi by throwing darts. On the platform NVCT_RESULTS_DIR and NVCT_PROGRESS_FILE_PATH are set; here it
writes to ./results. DARTS says how many (default 2,000,000), SEED where the random numbers begin. Started
again after it was stopped, it goes on from its checkpoint.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from nvcf_worker import Task, task

ROUNDS = 100


@dataclass
class State:
    """How far it is."""

    rounds: int = 0
    thrown: int = 0
    hit: int = 0

    @property
    def estimate(self) -> float:
        """Pi as far as it is known."""
        return 4 * self.hit / self.thrown if self.thrown else 0.0


def load(checkpoint: Path) -> State:
    """What an earlier run saved, else the beginning."""
    try:
        return State(**json.loads(checkpoint.read_text()))
    except FileNotFoundError:
        return State()


def one_round(state: State, darts: int, seed: int) -> State:
    """Throw some darts at the unit square; a round that is repeated throws the same ones."""
    dice = random.Random(f"{seed}-{state.rounds}").random
    hit = sum(dice() ** 2 + dice() ** 2 <= 1 for _ in range(darts))
    return State(state.rounds + 1, state.thrown + darts, state.hit + hit)


def main(run: Task) -> None:
    """All rounds; after each the state is saved and told."""
    results = run.results_dir
    checkpoint = results / "checkpoint.json"
    darts = int(os.environ.get("DARTS", "2000000")) // ROUNDS
    seed = int(os.environ.get("SEED", "1"))
    state = load(checkpoint)
    while state.rounds < ROUNDS and not run.cancelled:
        state = one_round(state, darts, seed)
        draft = checkpoint.with_suffix(".new")
        draft.write_text(json.dumps(asdict(state)))
        draft.replace(checkpoint)
        run.progress(100 * state.rounds / ROUNDS, metadata={"estimate": state.estimate})
    if state.rounds == ROUNDS:
        (results / "pi.txt").write_text(f"{state.estimate}\n")


if __name__ == "__main__":
    os.environ.setdefault("NVCT_RESULTS_DIR", "results")
    os.environ.setdefault("SHARED_CONFIG_DIR", "results/.shared")
    task(main)
