"""A task that reports progress, writes results, and saves its state so that it can continue after a stop.

    python examples/task/task.py

It estimates pi from random points. The platform sets NVCT_RESULTS_DIR and NVCT_PROGRESS_FILE_PATH. Without
them it writes to ./results. DARTS is the number of points (default 2,000,000), SEED the start of the random
numbers. If it is started again after a stop, it continues from its checkpoint.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict, dataclass

from nvcf_worker import Task, task

ROUNDS = 100


@dataclass
class State:
    """The state of the estimate."""

    rounds: int = 0
    thrown: int = 0
    hit: int = 0

    @property
    def estimate(self) -> float:
        """Return the current estimate of pi."""
        return 4 * self.hit / self.thrown if self.thrown else 0.0


def one_round(state: State, darts: int, seed: int) -> State:
    """Add some random points of the unit square. A repeated round has the same points."""
    dice = random.Random(f"{seed}-{state.rounds}").random
    hit = sum(dice() ** 2 + dice() ** 2 <= 1 for _ in range(darts))
    return State(state.rounds + 1, state.thrown + darts, state.hit + hit)


def main(run: Task) -> None:
    """Run all rounds. Save the state and report progress after each."""
    results = run.results_dir
    saved, draft = run.resume(), results / "state.json"
    darts = int(os.environ.get("DARTS", "2000000")) // ROUNDS
    seed = int(os.environ.get("SEED", "1"))
    state = State(**json.loads(saved.read_text())) if saved else State()
    while state.rounds < ROUNDS and not run.cancelled:
        state = one_round(state, darts, seed)
        draft.write_text(json.dumps(asdict(state)))
        run.checkpoint(draft)
        run.progress(100 * state.rounds / ROUNDS, metadata={"estimate": state.estimate})
    if state.rounds == ROUNDS:
        (results / "pi.txt").write_text(f"{state.estimate}\n")


if __name__ == "__main__":
    os.environ.setdefault("NVCT_RESULTS_DIR", "results")
    os.environ.setdefault("SHARED_CONFIG_DIR", "results/.shared")
    task(main)
