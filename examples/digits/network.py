"""A small neural network in numpy: one hidden layer, trained with Adam (Kingma and Ba, 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pictures import SIZE, Floats

HIDDEN = 64
NAMES = ("hidden", "hidden_offset", "output", "output_offset")


@dataclass
class Network:
    """Weights and offsets, and what Adam remembers of their gradients."""

    weights: dict[str, Floats]
    mean: dict[str, Floats]
    square: dict[str, Floats]
    step: int = 0

    @classmethod
    def untrained(cls, seed: int) -> Network:
        """Return a network with random weights."""
        random = np.random.default_rng(seed)
        weights = {
            "hidden": random.normal(0, 1 / SIZE, (SIZE * SIZE, HIDDEN)),
            "hidden_offset": np.zeros(HIDDEN),
            "output": random.normal(0, HIDDEN**-0.5, (HIDDEN, 10)),
            "output_offset": np.zeros(10),
        }
        exact = {name: value.astype(np.float32) for name, value in weights.items()}
        return cls(exact, *({name: np.zeros_like(value) for name, value in exact.items()} for _ in range(2)))

    def chances(self, rows: Floats) -> Floats:
        """Return the probability of each digit for each picture."""
        return self._outputs(rows)[1]

    def train(self, rows: Floats, digits: NDArray[np.int64], rate: float) -> float:
        """Take one step, and return the loss before it."""
        hidden, chances = self._outputs(rows)
        loss = float(-np.log(chances[np.arange(len(rows)), digits] + 1e-9).mean())
        slope = chances.copy()
        slope[np.arange(len(rows)), digits] -= 1
        slope /= np.float32(len(rows))
        below = (slope @ self.weights["output"].T) * (hidden > 0)
        gradients = (rows.T @ below, below.sum(0), hidden.T @ slope, slope.sum(0))
        self.step += 1
        for name, gradient in zip(NAMES, gradients, strict=True):
            self.mean[name] = (0.9 * self.mean[name] + 0.1 * gradient).astype(np.float32)
            self.square[name] = (0.999 * self.square[name] + 0.001 * gradient**2).astype(np.float32)
            mean = self.mean[name] / (1 - 0.9**self.step)
            square = self.square[name] / (1 - 0.999**self.step)
            change = rate * mean / (np.sqrt(square) + 1e-8)
            self.weights[name] = (self.weights[name] - change).astype(np.float32)
        return loss

    def accuracy(self, rows: Floats, digits: NDArray[np.int64]) -> float:
        """Return the share of pictures that are read right."""
        return float((self.chances(rows).argmax(1) == digits).mean())

    def save(self, path: Path) -> None:
        """Write the network to a file, with all that training needs to go on."""
        parts = {"weights": self.weights, "mean": self.mean, "square": self.square}
        arrays = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        np.savez(path, step=np.array(self.step), **arrays)

    @classmethod
    def load(cls, path: Path) -> Network:
        """Read a network from a file."""
        with np.load(path) as arrays:
            parts = [
                {name: arrays[f"{part}.{name}"] for name in NAMES} for part in ("weights", "mean", "square")
            ]
            return cls(*parts, step=int(arrays["step"]))

    def _outputs(self, rows: Floats) -> tuple[Floats, Floats]:
        hidden = np.maximum(rows @ self.weights["hidden"] + self.weights["hidden_offset"], 0)
        scores = hidden @ self.weights["output"] + self.weights["output_offset"]
        powers = np.exp(scores - scores.max(1, keepdims=True))
        return hidden, powers / powers.sum(1, keepdims=True)
