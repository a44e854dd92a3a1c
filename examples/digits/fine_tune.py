"""A task that fine-tunes a neural network, and survives being killed.

    nvcf task run examples/digits/fine_tune.py

The network first learns to read upright digits. Then it is fine-tuned, at a lower rate, to read tilted ones.
A checkpoint has the weights, what the optimizer remembers and the step, and each step draws its pictures by
its number. So a run that was killed and started again ends with the weights of an undisturbed run (rounded
otherwise, if it has another number of threads).

Results: `model.npz`. Without a platform it writes to ./results. STEPS is the number of fine-tuning steps.
"""

from __future__ import annotations

import os

import numpy as np
from network import Network
from pictures import TILT, examples

from nvcf_worker import Task, task

UPRIGHT = 3.0
LEARNING_STEPS = 300
BATCH = 64
EVERY = 20
RATE, FINE_RATE = 0.003, 0.001


def main(run: Task) -> None:
    """Train from the newest checkpoint on; make one every few steps."""
    steps = LEARNING_STEPS + int(os.environ.get("STEPS", "600"))
    saved = run.resume()
    network = Network.load(saved) if saved else Network.untrained(seed=1)
    if saved:
        print(f"goes on at step {network.step}", flush=True)
    draft = run.results_dir / "model.npz"
    pools = {tilt: examples(3000, tilt, seed=2) for tilt in (UPRIGHT, TILT)}
    test = examples(500, TILT, seed=3)
    while network.step < steps and not run.cancelled:
        fine = network.step >= LEARNING_STEPS
        rows, digits = pools[TILT if fine else UPRIGHT]
        chosen = np.random.default_rng(network.step).integers(0, len(rows), BATCH)
        loss = network.train(rows[chosen], digits[chosen], FINE_RATE if fine else RATE)
        if network.step % EVERY == 0 or network.step == steps:
            network.save(draft)
            run.checkpoint(draft)
            right = network.accuracy(*test)
            phase = "fine-tuning" if fine else "learning"
            metadata = {"loss": round(loss, 4), "tilted digits right": round(right, 3), "phase": phase}
            run.progress(100 * network.step / steps, name=f"step-{network.step}", metadata=metadata)


if __name__ == "__main__":
    os.environ.setdefault("NVCT_RESULTS_DIR", "results")
    os.environ.setdefault("SHARED_CONFIG_DIR", "results/.shared")
    task(main)
