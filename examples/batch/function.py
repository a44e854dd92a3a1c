"""Dynamic batching: a neural network that serves many callers with one multiplication for each layer.

    nvcf deploy examples/batch/function.py --name spirals
    nvcf invoke spirals --data '{"x": 0.4, "y": -0.1}'

There are two spirals. The network decides on which one a point lies, and how sure it is. It is small (two
hidden layers of 32, written with numpy), and `setup` trains it in about a second before the instance is
ready. So there is no file of weights.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvcf_worker import BadInput, SyncRequest, batch, serve

Floats = NDArray[np.float32]

log = logging.getLogger("function")

TURNS = 1.5
POINTS = 400
HIDDEN = 32
STEPS = 1200
LEARNING_RATE = 0.01
NOISE = 0.02


def spirals(points: int, seed: int) -> tuple[Floats, Floats]:
    """Return points of both spirals within the unit circle, and 0 or 1 for each."""
    random = np.random.default_rng(seed)
    label = np.arange(points) % 2
    radius = np.sqrt(random.uniform(0.02, 1.0, points))
    angle = radius * TURNS * 2 * math.pi + label * math.pi
    place = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return (place + random.normal(0, NOISE, place.shape)).astype(np.float32), label.astype(np.float32)


@dataclass
class Network:
    """Weights and offsets of each layer."""

    layers: list[tuple[Floats, Floats]]

    @classmethod
    def untrained(cls, seed: int) -> Network:
        """Return a network with random weights, scaled to the number of inputs."""
        random = np.random.default_rng(seed)
        sizes = [2, HIDDEN, HIDDEN, 1]
        layers = []
        for inputs, outputs in itertools.pairwise(sizes):
            weights = random.normal(0, 1.5 / math.sqrt(inputs), (inputs, outputs)).astype(np.float32)
            layers.append((weights, np.zeros(outputs, np.float32)))
        return cls(layers)

    def activations(self, points: Floats) -> list[Floats]:
        """Return the input and the output of each layer. The last is the probability of the second spiral."""
        outputs = [points]
        for weights, offset in self.layers[:-1]:
            outputs.append(np.tanh(outputs[-1] @ weights + offset))
        weights, offset = self.layers[-1]
        outputs.append(1 / (1 + np.exp(-(outputs[-1] @ weights + offset))))
        return outputs

    def __call__(self, points: Floats) -> Floats:
        """Return the probability that each point lies on the second spiral."""
        chances: Floats = self.activations(points)[-1][:, 0]
        return chances

    def gradients(self, points: Floats, labels: Floats) -> list[Floats]:
        """Return the gradients of the cross entropy, for weights and offset of each layer."""
        outputs = self.activations(points)
        slope: Floats = (outputs[-1] - labels[:, None]) / np.float32(len(points))
        gradients: list[Floats] = []
        for index in range(len(self.layers) - 1, -1, -1):
            gradients[:0] = [np.dot(outputs[index].T, slope), np.sum(slope, axis=0, dtype=np.float32)]
            if index:
                slope = (slope @ self.layers[index][0].T) * (1 - outputs[index] ** 2)
        return gradients


def train(seed: int = 7) -> Network:
    """Train a network on one set of points with full-batch Adam (Kingma and Ba, 2015)."""
    points, labels = spirals(POINTS, seed)
    network = Network.untrained(seed)
    parameters = [part for layer in network.layers for part in layer]
    mean = [np.zeros_like(part) for part in parameters]
    square = [np.zeros_like(part) for part in parameters]
    for step in range(1, STEPS + 1):
        for index, gradient in enumerate(network.gradients(points, labels)):
            mean[index] = 0.9 * mean[index] + 0.1 * gradient
            square[index] = 0.999 * square[index] + 0.001 * gradient**2
            change = mean[index] / (1 - 0.9**step) / (np.sqrt(square[index] / (1 - 0.999**step)) + 1e-8)
            parameters[index] -= (LEARNING_RATE * change).astype(np.float32)
    return network


def point_of(request: SyncRequest) -> tuple[float, float]:
    """Return the point in a request. It runs for each request before the request joins a batch.

    Raises BadInput.
    """
    body = request.json()
    if not isinstance(body, dict):
        raise BadInput("the body must be a JSON object")
    x, y = number(body.get("x")), number(body.get("y"))
    if not math.hypot(x, y) <= 2:
        raise BadInput("the point must lie within 2 of the origin")
    return x, y


def number(value: object) -> float:
    """Return a number as a float. Raises BadInput for other values."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput("x and y must be numbers")
    return float(value)


class Spirals:
    """The function. It is trained before the first request and gets up to 64 points in one call."""

    def setup(self) -> None:
        """Train the network and log how good it is on new points."""
        started = time.monotonic()
        self.network = train()
        points, labels = spirals(1000, seed=99)
        right = float(((self.network(points) > 0.5) == (labels > 0.5)).mean())
        log.info("trained in %.1f s; %.1f %% of new points right", time.monotonic() - started, right * 100)

    @batch(max_size=64, max_wait=0.004, prepare=point_of)
    def __call__(self, points: list[tuple[float, float]]) -> list[dict[str, Any]]:
        """Compute all points with one multiplication for each layer."""
        chances = self.network(np.array(points, np.float32))
        return [
            {
                "spiral": int(chance > 0.5),
                "sure": round(float(max(chance, 1 - chance)), 4),
                "batch": len(points),
            }
            for chance in chances
        ]


if __name__ == "__main__":
    serve(Spirals)
