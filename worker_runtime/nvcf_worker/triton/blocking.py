"""The twin of a model for plain handlers, whose thread waits for the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from nvcf_worker.run.batching.calling import wait_for
from nvcf_worker.triton.tensors import Array


class BlockingModel:
    """`model.blocking(inputs)`: as `await model(inputs)`, on the thread of a plain handler.

    Raises RequestCancelled when the request is cancelled meanwhile, which reaches Triton.
    """

    def __init__(self, model: Any) -> None:  # a Model, whose module imports this one
        self._model = model

    def __call__(self, inputs: Any, **options: Any) -> dict[str, Array]:
        """Return the outputs of one inference by name; arguments as for the model."""
        found: dict[str, Array] = wait_for(lambda: self._model(inputs, **options))
        return found

    def stream(self, inputs: Any, **options: Any) -> Iterator[dict[str, Array]]:
        """Iterate over the responses of a decoupled model."""

        async def begun() -> Any:
            return self._model.stream(inputs, **options)

        parts: Iterator[dict[str, Array]] = wait_for(begun)
        return parts

    def sequence(self, **options: Any) -> BlockingSequence:
        """Return a new sequence: `with model.blocking.sequence() as sequence`."""
        return BlockingSequence(self._model.sequence(**options))


class BlockingSequence:
    """A sequence of requests on the thread of a plain handler."""

    def __init__(self, sequence: Any) -> None:
        self._sequence = sequence

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        wait_for(self._sequence.__aexit__)

    def __call__(self, inputs: Any, **options: Any) -> dict[str, Array]:
        """Return the outputs of the next request."""
        found: dict[str, Array] = wait_for(lambda: self._sequence(inputs, **options))
        return found

    def last(self, inputs: Any, **options: Any) -> dict[str, Array]:
        """Return the outputs of the last request, and end the sequence."""
        found: dict[str, Array] = wait_for(lambda: self._sequence.last(inputs, **options))
        return found
