"""Large tensors to a Triton server on the same machine, in shared memory that is used again."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from math import prod
from typing import NamedTuple

from nvcf_worker.run.tritonserver.spec import TensorSpec
from nvcf_worker.triton.errors import TritonRefused
from nvcf_worker.triton.segments import DIRECTORY, PREFIX, Segment, exists, remove_left_over
from nvcf_worker.triton.tensors import Array, numpy_type
from nvcf_worker.triton.transport import Call, Region, Transport

log = logging.getLogger("nvcf_worker")

THRESHOLD = 512 * 1024
"""Bytes from which a tensor is faster in shared memory, as measured in docs/functions/triton-library.md."""
LIMIT = 1024 * 1024 * 1024
"""Bytes of shared memory that one worker takes at most; what does not fit is sent as other tensors are."""
ALIGNMENT = 4096
CLOSE_SECONDS = 5.0
UNREGISTER_AFTER = 10.0
"""Seconds for which Triton keeps a region whose request may still run, and between two attempts to end that.

Triton 2.51 refuses to forget a region that is in use, so that it needs no first wait. Older servers do not
look, and crash without the memory: for them this is long enough for most requests, no more.
"""
_IN_USE = "currently in use"
_DONE_WITH_IT = frozenset(("INVALID_ARGUMENT", "INTERNAL", "NOT_FOUND", "ALREADY_EXISTS", "UNIMPLEMENTED"))


class _Condemned(NamedTuple):
    """A region that Triton has to forget at a time, and the bytes that it holds until then."""

    at: float
    name: str
    size: int


class SharedMemory:
    """The segments of one connection. Used on one event loop.

    limit: bytes at most. A segment is used by one request at a time, and again only when Triton has answered.
    """

    def __init__(self, transport: Transport, *, threshold: int = THRESHOLD, limit: int = LIMIT) -> None:
        self._transport = transport
        self._threshold = threshold
        self._limit = limit
        self._free: dict[int, list[Segment]] = {}
        self._taken: set[Segment] = set()
        self._bytes = 0
        self._usable = DIRECTORY.is_dir()
        self._cleaned = False
        self._left: set[asyncio.Task[dict[str, Array]]] = set()
        self._condemned: list[_Condemned] = []

    async def infer(self, call: Call) -> dict[str, Array] | None:
        """Run a call with its large tensors in shared memory; return None if it has none, or none fits."""
        if not self._usable:
            return None
        inputs = [each for each in call.tensors if each.datatype not in ("BYTES", "BF16")]
        inputs = [each for each in inputs if each.array.nbytes >= self._threshold]
        outputs = {
            each.name: shape
            for each in call.spec.outputs
            if (shape := self._output_shape(each, call)) is not None
        }
        if not inputs and not outputs:
            return None
        sizes = {each.name: each.array.nbytes for each in inputs}
        out_sizes = {name: _size(_spec(call, name), shape) for name, shape in outputs.items()}
        segment = await self._acquire(sum(map(_aligned, [*sizes.values(), *out_sizes.values()])))
        if segment is None:
            return None
        offset = 0
        placed: dict[str, Region] = {}
        for each in inputs:
            segment.write(offset, each.array)
            placed[each.name] = Region(segment.name, each.array.nbytes, offset)
            offset += _aligned(each.array.nbytes)
        results: dict[str, Region] = {}
        for name, size in out_sizes.items():
            results[name] = Region(segment.name, size, offset)
            offset += _aligned(size)
        found = await self._run(replace(call, input_regions=placed, output_regions=results), segment)
        if found is None:
            return None
        try:
            for name, region in results.items():
                dtype = numpy_type(_spec(call, name).datatype)
                found[name] = segment.read(region.offset, dtype, outputs[name])
        finally:
            self._release(segment)
        return {each.name: found[each.name] for each in call.spec.outputs if each.name in found}

    async def _run(self, call: Call, segment: Segment) -> dict[str, Array] | None:
        """Return the outputs of a call; None if Triton has lost the region, e.g. after a restart.

        Whoever leaves does not end the request: Triton may read and write the memory until it has answered.
        """
        task = asyncio.ensure_future(self._transport.infer(call))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._left.add(task)
            task.add_done_callback(lambda done: self._answered_late(done, segment))
            raise
        except TritonRefused as refused:
            lost = "shared memory region" in refused.text.lower()
            self._settle(refused, segment, lost=lost)
            if lost:
                return None
            raise

    def _answered_late(self, task: asyncio.Task[dict[str, Array]], segment: Segment) -> None:
        self._left.discard(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or (error is not None and not isinstance(error, TritonRefused)):
            self._condemn(segment)
        elif isinstance(error, TritonRefused):
            self._settle(error, segment, lost=False)
        else:
            self._release(segment)

    def _settle(self, refused: TritonRefused, segment: Segment, *, lost: bool) -> None:
        if lost:
            for free in self._free.values():
                for each in free:
                    self._condemn(each)
            self._free.clear()
        if lost or refused.status not in _DONE_WITH_IT:
            self._condemn(segment)
        else:
            self._release(segment)

    def _output_shape(self, output: TensorSpec, call: Call) -> tuple[int, ...] | None:
        """Return the shape of an output that is known before the call, if it is large enough."""
        if output.datatype in ("BYTES", "BF16") or call.spec.decoupled:
            return None
        shape = output.shape
        if call.spec.max_batch and call.tensors:
            shape = (call.tensors[0].array.shape[0], *shape[1:])
        if any(size < 0 for size in shape) or _size(output, shape) < self._threshold:
            return None
        return shape

    async def _acquire(self, size: int) -> Segment | None:
        size = 1 << (size - 1).bit_length()
        await self._clean()
        free = self._free.get(size)
        if free:
            segment = free.pop()
            self._taken.add(segment)
            return segment
        if self._bytes + size > self._limit and not await self._shrink(size):
            return None
        self._bytes += size
        try:
            # Off the loop: the kernel clears the memory.
            segment = await asyncio.to_thread(Segment, size)
        except OSError as error:
            self._bytes -= size
            log.debug("no shared memory for a tensor: %s", error)
            return None
        self._taken.add(segment)
        try:
            await self._transport.register(Region(segment.name, segment.size), segment.key)
        except TritonRefused as refused:
            self._condemn(segment)
            if refused.status in _DONE_WITH_IT:
                self._usable = False
                log.info("Triton does not share this machine's memory (%s); tensors are sent", refused.text)
            return None
        except BaseException:
            self._condemn(segment)
            raise
        return segment

    async def _shrink(self, needed: int) -> bool:
        """Remove free segments of other sizes until there is room; return whether there is."""
        for size in sorted(self._free, reverse=True):
            while self._free[size] and self._bytes + needed > self._limit:
                await self._forget(self._free[size].pop())
        return self._bytes + needed <= self._limit

    def _release(self, segment: Segment) -> None:
        self._taken.discard(segment)
        self._free.setdefault(segment.size, []).append(segment)

    def _condemn(self, segment: Segment) -> None:
        """Never use a segment again. Triton keeps its memory for a while, and until then it counts."""
        self._taken.discard(segment)
        segment.remove()
        self._condemned.append(_Condemned(time.monotonic() + UNREGISTER_AFTER, segment.name, segment.size))

    async def _forget(self, segment: Segment) -> None:
        self._bytes -= segment.size
        await self._unregister(segment.name)
        segment.remove()

    async def _unregister(self, name: str) -> bool:
        """Have Triton forget a region; return False if a request still uses it."""
        try:
            await self._transport.unregister(name)
        except TritonRefused as refused:
            return _IN_USE not in refused.text
        return True

    async def _clean(self) -> None:
        """Remove what workers have left that crashed; once for each connection."""
        if self._cleaned:
            return
        self._cleaned = True
        removed = await asyncio.to_thread(remove_left_over)
        if removed:
            log.info("removed %d segments of shared memory of workers that have ended", len(removed))
        try:
            known = await self._transport.regions()
        except TritonRefused:
            return
        due = time.monotonic() + UNREGISTER_AFTER
        gone = (name for name, key in known.items() if name.startswith(PREFIX) and not exists(key))
        self._condemned.extend(_Condemned(due, name, 0) for name in gone)

    async def tick(self) -> None:
        """Have Triton forget regions whose time is over; called about every second."""
        now = time.monotonic()
        due = [each for each in self._condemned if each.at <= now]
        self._condemned = [each for each in self._condemned if each.at > now]
        for each in due:
            if await self._unregister(each.name):
                self._bytes -= each.size
            else:
                self._condemned.append(each._replace(at=now + UNREGISTER_AFTER))

    async def close(self) -> None:
        """Remove all segments, once Triton has answered those whose callers have left."""
        self._usable = False
        if self._left:
            await asyncio.wait(self._left, timeout=CLOSE_SECONDS)
        for task in tuple(self._left):
            task.cancel()
        for free in self._free.values():
            for segment in free:
                await self._forget(segment)
        self._free.clear()
        for segment in tuple(self._taken):
            # Triton may still write there: only the name goes.
            self._condemn(segment)


def _spec(call: Call, name: str) -> TensorSpec:
    return next(each for each in call.spec.outputs if each.name == name)


def _size(output: TensorSpec, shape: tuple[int, ...]) -> int:
    return prod(shape) * numpy_type(output.datatype).itemsize


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
