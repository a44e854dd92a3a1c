"""Train the classifier of `models/digits` on drawings that this file makes: `python train.py`.

A drawing is a digit of 5 x 7 dots somewhere on 12 x 12 pixels, of any brightness, under noise. The
classifier has one hidden layer of 32 units.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "models/features/1"))
from centre import SIZE, centred  # noqa: E402 - the same code makes the features in Triton

WEIGHTS = HERE / "models/digits/1/weights.npz"
HIDDEN = 32
Array = np.ndarray[Any, Any]

_DOTS = """
.###. ..#.. .###. ##### ...#. ##### ..##. ##### .###. .###.
#...# .##.. #...# ...#. ..##. #.... .#... ....# #...# #...#
#..## ..#.. ....# ..#.. .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ...#. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# .#... #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ...#.
.###. .###. ##### .###. ...#. .###. .###. .#... .###. .##..
"""
_ROWS = _DOTS.split()
GLYPHS = np.array([[[dot == "#" for dot in word] for word in _ROWS[digit::10]] for digit in range(10)])


def draw(digit: int, rng: np.random.Generator) -> Array:
    """Return a drawing of a digit: 12 x 12 grey values, with noise."""
    picture = np.zeros((SIZE, SIZE))
    top, left = rng.integers(0, SIZE - 7 + 1), rng.integers(0, SIZE - 5 + 1)
    picture[top : top + 7, left : left + 5] = GLYPHS[digit] * rng.uniform(150, 255)
    return np.clip(picture + rng.normal(0, 25, picture.shape), 0, 255).astype(np.uint8)


def drawings(count: int, seed: int) -> tuple[Array, Array]:
    """Return drawings and what they show."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    return np.stack([draw(int(digit), rng) for digit in labels]), labels


def train(pictures: Array, labels: Array, steps: int = 250, rate: float = 0.5) -> dict[str, Array]:
    """Return weights found by gradient descent on the cross-entropy."""
    rng = np.random.default_rng(0)
    features, wanted = centred(pictures), np.eye(10)[labels]
    w1 = rng.normal(0, 0.1, (features.shape[1], HIDDEN))
    w2 = rng.normal(0, 0.1, (HIDDEN, 10))
    b1, b2 = np.zeros(HIDDEN), np.zeros(10)
    for _ in range(steps):
        hidden = np.maximum(features @ w1 + b1, 0)
        scores = hidden @ w2 + b2
        chances = np.exp(scores - scores.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        off = (chances - wanted) / len(labels)
        back = (off @ w2.T) * (hidden > 0)
        w2 -= rate * hidden.T @ off
        b2 -= rate * off.sum(0)
        w1 -= rate * features.T @ back
        b1 -= rate * back.sum(0)
    return {
        name: value.astype(np.float32) for name, value in {"w1": w1, "b1": b1, "w2": w2, "b2": b2}.items()
    }


def accuracy(weights: dict[str, Array], pictures: Array, labels: Array) -> float:
    """Return the part of drawings that are read rightly."""
    hidden = np.maximum(centred(pictures) @ weights["w1"] + weights["b1"], 0)
    return float(((hidden @ weights["w2"] + weights["b2"]).argmax(1) == labels).mean())


if __name__ == "__main__":
    found = train(*drawings(2000, seed=1))
    np.savez(WEIGHTS, **found)
    print(f"{accuracy(found, *drawings(1000, seed=2)):.1%} of 1000 new drawings are read rightly")
