"""One model: awaited with its inputs, streamed, or called within a sequence."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self

from nvcf_worker.errors import HTTPError, RetryLater
from nvcf_worker.function.request import RequestInfo
from nvcf_worker.process import logs
from nvcf_worker.run import slot_limits
from nvcf_worker.run.batching.settings import SuggestsConcurrency
from nvcf_worker.run.tritonserver.slots import MOST
from nvcf_worker.run.tritonserver.spec import ModelSpec, spec_of
from nvcf_worker.triton.blocking import BlockingModel
from nvcf_worker.triton.errors import TritonRefused, raised_for
from nvcf_worker.triton.tensors import Array, tensors_of
from nvcf_worker.triton.transport import Call, SequencePlace
from nvcf_worker.triton.watch import ModelState

if TYPE_CHECKING:
    from nvcf_worker.triton.link import Link

TRACE_HEADERS = ("traceparent", "tracestate", "baggage")


class Model(SuggestsConcurrency):
    """A model of a Triton server. `await model(inputs)` returns its outputs by name, as numpy arrays.

    Made by `Triton.model`. In a plain handler, `model.blocking(inputs)` does the same.
    """

    # More than most models need: the worker's slots are limited as soon as the model is known.
    suggested_concurrency = MOST

    def __init__(self, connected: Callable[[], Link], name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.spec: ModelSpec | None = None
        """What the model takes and gives; known after the first call or `load`."""
        self._connected = connected
        self._loading: asyncio.Lock | None = None
        self._state: ModelState | None = None
        self._link: Link | None = None
        self.register()

    @property
    def blocking(self) -> BlockingModel:
        """The same model for plain handlers, whose thread waits."""
        return BlockingModel(self)

    async def load(self) -> ModelSpec:
        """Return what the model takes and gives; ask Triton if it is not known yet.

        Raises TritonUnavailable or TritonError with Triton's own words.
        """
        link = self._connected()
        if self.spec is not None and self._link is link:
            return self.spec
        if self._loading is None or self._link is not link:
            self._loading, self._link, self.spec = asyncio.Lock(), link, None
        async with self._loading:
            if self.spec is None:
                try:
                    metadata, config = await link.transport.describe(self.name, self.version)
                except TritonRefused as refused:
                    raise raised_for(refused, self.name) from None
                self.spec = spec_of(metadata, config, self.version)
                self._state = await link.watch.follow(self, self.spec)
            return self.spec

    async def __call__(
        self,
        inputs: Any,
        *,
        request: RequestInfo | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """Return the outputs of one inference by name; those of the type BYTES are arrays of `bytes`.

        inputs: values by name, or the value itself for a model with one input: numpy arrays, lists, numbers,
            text. Values with fewer dimensions than the model's get leading dimensions of 1.
        request: the request that is handled. Its deadline ends its time in Triton's queue, if the model
            allows time-outs of requests; then it goes back to the platform's queue.
        priority: Triton's priority level; 0 for the model's own.
        timeout: seconds in Triton's queue at most, instead of the deadline; then the caller gets 504.

        Raises InvalidInput for inputs that do not fit, BadInput for those that Triton refuses,
        TritonUnavailable when the request should be tried again elsewhere, HTTPError(504), TritonError.
        """
        spec = await self.load()
        if spec.decoupled:
            raise TypeError(
                f"model {self.name} is decoupled and may answer several times; "
                "write `async for part in model.stream(...)`"
            )
        return await self._infer(self._call(spec, inputs, request, priority, timeout), timeout is not None)

    async def stream(
        self,
        inputs: Any,
        *,
        request: RequestInfo | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[dict[str, Array]]:
        """Iterate over the responses of a decoupled model; another model gives one. Arguments as for a call.

        Triton learns at once when the caller leaves or the iteration ends early.
        """
        spec = await self.load()
        call = self._call(spec, inputs, request, priority, timeout)
        parts = self._connected().transport.stream(call)
        async with aclosing(parts):  # type: ignore[type-var] # the transports' streams are generators
            try:
                async for part in parts:
                    yield part
            except TritonRefused as refused:
                raise self._raised(refused, own_timeout=timeout is not None) from None

    def sequence(self, *, request: RequestInfo | None = None) -> Sequence:
        """Return a new sequence of a stateful model: `async with model.sequence() as sequence`."""
        return Sequence(self, request)

    def _call(
        self,
        spec: ModelSpec,
        inputs: Any,
        request: RequestInfo | None,
        priority: int,
        timeout: float | None,
        place: SequencePlace | None = None,
    ) -> Call:
        if self._state is not None:
            self._state.most_in_flight = max(self._state.most_in_flight, slot_limits.in_flight())
        wait = timeout
        if wait is None and request is not None and request.time_left > 0:
            # After the deadline the request runs for callers who poll, without a limit.
            wait = request.time_left
        return Call(
            spec,
            tensors_of(spec, inputs),
            (logs.request_id.get() or "") if request is None else request.id,
            priority,
            wait,
            place,
            trace_headers(request),
        )

    async def _infer(self, call: Call, own_timeout: bool) -> dict[str, Array]:
        link = self._connected()
        try:
            if link.memory is not None:
                found = await link.memory.infer(call)
                if found is not None:
                    return found
            return await link.transport.infer(call)
        except TritonRefused as refused:
            raise self._raised(refused, own_timeout=own_timeout) from None

    def _raised(self, refused: TritonRefused, *, own_timeout: bool) -> Exception:
        if refused.status in ("INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE"):
            # Perhaps the model was replaced by another one; the next call looks.
            self.spec = None
        return raised_for(refused, self.name, own_timeout=own_timeout)


class Sequence:
    """A sequence of requests that one instance of a stateful model sees in order: `await sequence(inputs)`.

    The model frees its place after `last`, else after its `max_sequence_idle_microseconds`.
    """

    def __init__(self, model: Model, request: RequestInfo | None) -> None:
        self._model = model
        self._request = request
        self._number = secrets.randbits(62) + 1
        self._began = False
        self._over = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True

    async def __call__(self, inputs: Any, *, timeout: float | None = None) -> dict[str, Array]:
        """Return the outputs of the next request. Arguments as for a call of the model.

        Raises HTTPError(503) when Triton has lost the sequence: it cannot go on elsewhere.
        """
        return await self._next(inputs, timeout, end=False)

    async def last(self, inputs: Any, *, timeout: float | None = None) -> dict[str, Array]:
        """Return the outputs of the last request, and end the sequence."""
        return await self._next(inputs, timeout, end=True)

    async def _next(self, inputs: Any, timeout: float | None, *, end: bool) -> dict[str, Array]:
        if self._over:
            raise RuntimeError("the sequence is over; begin another one with model.sequence()")
        model = self._model
        spec = await model.load()
        if not spec.sequential:
            raise TypeError(f"model {spec.name} has no sequence batching; call it without a sequence")
        number = str(self._number) if spec.text_sequence_ids else self._number
        place = SequencePlace(number, not self._began, end)
        call = model._call(spec, inputs, self._request, 0, timeout, place)
        began, self._began, self._over = self._began, True, end
        try:
            return await model._infer(call, timeout is not None)
        except RetryLater as error:
            self._over = True
            if not began:
                raise  # nothing is lost: all of it can begin anew
            raise HTTPError(503, f"the sequence was lost: {error}", headers={"Retry-After": "1"}) from None


def trace_headers(request: RequestInfo | None) -> Mapping[str, str]:
    """Return the headers of the current span, for Triton's own spans."""
    current = logs.current_trace() or (request.trace_context if request is not None else {})
    return {name: value for name, value in current.items() if name in TRACE_HEADERS}
