"""`serve(Triton(...).handler("bert"))`: a model as a function that takes and gives JSON."""

from __future__ import annotations

import time
from typing import Any, Protocol

from nvcf_worker.errors import MethodNotAllowed
from nvcf_worker.function.handlers import Handler, Kind
from nvcf_worker.function.loading import of_instance
from nvcf_worker.function.request import Request
from nvcf_worker.triton.json_tensors import inputs_of, outputs_of
from nvcf_worker.triton.model import Model
from nvcf_worker.triton.schema import openapi

OPENAPI_PATH = "/openapi.json"
LOST_SECONDS = 60.0
"""How long Triton may be away before the instance counts as unhealthy and is replaced."""


class Server(Protocol):
    """The part of a `Triton` that a handler uses."""

    @property
    def unreachable_since(self) -> float | None:
        """Return since when the server has not been available."""

    async def wait_ready(self, timeout: float) -> None:
        """Wait until the server is ready."""

    async def close(self) -> None:
        """Close the connections."""


class ModelHandler:
    """Serves one model: POST runs it, on any path; `GET /openapi.json` describes it.

    A decoupled model answers with a stream of JSON lines.
    """

    def __init__(self, triton: Server, model: Model, ready_timeout: float) -> None:
        self._triton = triton
        self._model = model
        self._ready_timeout = ready_timeout

    async def setup(self) -> None:
        """Wait until Triton is ready, and read what the model takes and gives."""
        await self._triton.wait_ready(self._ready_timeout)
        await self._model.load()

    def health(self) -> str | None:
        """Return why the instance is unhealthy: Triton has been away for too long."""
        since = self._triton.unreachable_since
        if since is None or time.monotonic() - since < LOST_SECONDS:
            return None
        return f"Triton has not been available for {LOST_SECONDS:g} s"

    async def teardown(self) -> None:
        """Close the connections, and remove shared memory."""
        await self._triton.close()

    async def __call__(self, request: Request) -> Any:
        """Run the model with the inputs of a request."""
        spec = await self._model.load()
        given = inputs_of(spec, await request.json())
        if spec.decoupled:
            return self._parts(request, given.inputs, single=given.single)
        outputs = await self._model(given.inputs, request=request)
        return outputs_of(spec, outputs, single=given.single)

    async def _parts(self, request: Request, inputs: dict[str, Any], *, single: bool) -> Any:
        spec = await self._model.load()
        async for part in self._model.stream(inputs, request=request):
            yield outputs_of(spec, part, single=single)

    async def describe(self, request: Request) -> dict[str, Any]:
        """Return the OpenAPI document."""
        return openapi(await self._model.load())

    def _as_handler(self, media_type: str | None = None) -> Handler:
        """Return it as what `serve` runs."""
        loading = of_instance(self)
        name = f"model {self._model.name}"
        infer = Handler(self.__call__, Kind.ASYNC, media_type, name)
        describe = Handler(self.describe, Kind.ASYNC, None, name)
        router = _Router(infer, describe)
        hooks = () if loading is None else (loading,)
        return Handler(self.__call__, Kind.ASYNC, media_type, name, hooks, router)


class _Router:
    """Chooses between inference and description."""

    def __init__(self, infer: Handler, describe: Handler) -> None:
        self._infer = infer
        self._describe = describe

    def match(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """Return the handler of a request. Raises MethodNotAllowed."""
        if path == OPENAPI_PATH and method in ("GET", "HEAD"):
            return self._describe, {}
        if method != "POST":
            allowed = "GET" if path == OPENAPI_PATH else "POST"
            raise MethodNotAllowed(f"{path} is not served for {method}", [allowed])
        return self._infer, {}
