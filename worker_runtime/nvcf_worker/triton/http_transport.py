"""Triton by HTTP, with binary tensors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.http.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from nvcf_worker.triton.errors import TritonRefused, of_http_status
from nvcf_worker.triton.tensors import Array, Tensor
from nvcf_worker.triton.transport import Address, Call, Region

CALL_SECONDS = 86_400.0
"""The longest time limit of a request; a handler's own limit cancels the call before."""


class HttpTransport:
    """Connections to one server."""

    def __init__(self, address: Address) -> None:
        self._client = InferenceServerClient(
            address.target, conn_limit=0, conn_timeout=CALL_SECONDS, ssl=address.tls
        )

    async def ready(self) -> bool:
        with contextlib.suppress(InferenceServerException, aiohttp.ClientError, OSError):
            return bool(await self._client.is_server_ready())
        return False

    async def describe(self, model: str, version: str) -> tuple[dict[str, Any], dict[str, Any]]:
        with _refusals():
            metadata = await self._client.get_model_metadata(model, version)
            return metadata, await self._client.get_model_config(model, version)

    async def statistics(self, model: str, version: str) -> dict[str, Any]:
        with _refusals():
            found: dict[str, Any] = await self._client.get_inference_statistics(model, version)
            return found

    async def infer(self, call: Call) -> dict[str, Array]:
        sequence = call.sequence
        outputs = [_output(each.name, call.output_regions.get(each.name)) for each in call.spec.outputs]
        with _refusals():
            result = await self._client.infer(
                call.spec.name,
                [_input(each, call.input_regions.get(each.name)) for each in call.tensors],
                model_version=call.spec.version,
                outputs=outputs if call.output_regions else None,
                request_id=call.id,
                sequence_id=0 if sequence is None else sequence.id,
                sequence_start=sequence is not None and sequence.start,
                sequence_end=sequence is not None and sequence.end,
                priority=call.priority,
                timeout=call.wait_microseconds,
                headers=dict(call.headers),
            )
        return {
            output["name"]: _array(result, output)
            for output in result.get_response().get("outputs", ())
            if output["name"] not in call.output_regions
        }

    async def stream(self, call: Call) -> AsyncIterator[dict[str, Array]]:
        if call.spec.decoupled:
            raise TypeError(
                f"model {call.spec.name} is decoupled, which Triton serves by gRPC; use a grpc:// URL"
            )
        yield await self.infer(call)

    async def register(self, region: Region, key: str) -> None:
        with _refusals():
            await self._client.register_system_shared_memory(region.name, key, region.size)

    async def unregister(self, name: str) -> None:
        with _refusals():
            await self._client.unregister_system_shared_memory(name)

    async def regions(self) -> dict[str, str]:
        with _refusals():
            found = await self._client.get_system_shared_memory_status()
        return {each["name"]: each["key"] for each in found}

    async def close(self) -> None:
        await self._client.close()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except InferenceServerException as error:
        raise TritonRefused(of_http_status(error.status()), error.message()) from None
    except (aiohttp.ClientError, OSError) as error:
        raise TritonRefused("UNAVAILABLE", str(error) or type(error).__name__) from None


def _input(tensor: Tensor, region: Region | None) -> InferInput:
    given = InferInput(tensor.name, list(tensor.array.shape), tensor.datatype)
    if region is None:
        given.set_data_from_numpy(_client_array(tensor))
    else:
        given.set_shared_memory(region.name, region.size, region.offset)
    return given


def _client_array(tensor: Tensor) -> Array:
    if tensor.datatype != "BF16":
        return tensor.array
    try:
        import ml_dtypes
    except ImportError:  # releases of tritonclient without it take float32
        return tensor.array
    array: Array = tensor.array.astype(ml_dtypes.bfloat16)
    return array


def _output(name: str, region: Region | None) -> InferRequestedOutput:
    wanted = InferRequestedOutput(name)
    if region is not None:
        wanted.set_shared_memory(region.name, region.size, region.offset)
    return wanted


def _array(result: Any, output: dict[str, Any]) -> Array:
    array: Array = result.as_numpy(output["name"])
    return array.astype("float32") if output["datatype"] == "BF16" else array
