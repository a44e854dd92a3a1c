"""A batch function that is a generator: each step a list with one output an item, each item a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from nvcf_worker.errors import BatchError
from nvcf_worker.run.batching.items import Waiting, results_of
from nvcf_worker.run.batching.streams import ItemStream, Outlet


class StepBatch:
    """Hands the outputs of each step to the items' streams.

    The first step decides: before it a failure is the failure of the call, so that it can be tried again;
    after it the streams are handed out, and a failure ends those that are still open. A reader that is
    `buffer` outputs behind makes the generator wait.
    """

    def __init__(
        self, steps: AsyncGenerator[Any, None], batch: list[Waiting], buffer: int, name: str
    ) -> None:
        self._steps = steps
        self._batch = batch
        self._name = name
        self._changed = asyncio.Event()
        self._outlets = [Outlet(buffer, self._changed.set) for _ in batch]
        self._handed_out = False

    async def run(self) -> None:
        """Run the generator to its end, or until nobody wants anything more of it."""
        try:
            async for step in self._steps:
                self._give(step)
                if not await self._room():
                    break
            if not self._handed_out:
                self._hand_out()
            self._end(None)
        except asyncio.CancelledError:
            self._end(BatchError(f"{self._name} was stopped"))
            raise
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            if not self._handed_out:
                raise
            self._end(error)
        finally:
            await self._steps.aclose()

    def _give(self, step: Any) -> None:
        outputs = results_of(step, len(self._batch), self._name)
        if not self._handed_out:
            self._hand_out(outputs)
        for outlet, output in zip(self._outlets, outputs, strict=True):
            outlet.give(output)

    def _hand_out(self, outputs: list[Any] | None = None) -> None:
        self._handed_out = True
        for index, (waiting, outlet) in enumerate(zip(self._batch, self._outlets, strict=True)):
            if waiting.gone:
                outlet.abandon()
            elif outputs is not None and isinstance(outputs[index], BaseException):
                waiting.fail(outputs[index])
                outlet.end()
            else:
                waiting.succeed(ItemStream(outlet))

    async def _room(self) -> bool:
        """Wait until every open stream takes more; False when no stream is open any more."""
        while True:
            open_ones = [outlet for outlet in self._outlets if outlet.open]
            if not open_ones:
                return False
            if not any(outlet.full for outlet in open_ones):
                # A generator that never waits must not keep the readers from the loop.
                await asyncio.sleep(0)
                return True
            self._changed.clear()
            await self._changed.wait()

    def _end(self, error: BaseException | None) -> None:
        for outlet in self._outlets:
            outlet.end(error)
