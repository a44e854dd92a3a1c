"""Triton by gRPC."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from nvcf_worker.control.config import WITHOUT_PROXY
from nvcf_worker.triton.errors import TritonRefused
from nvcf_worker.triton.tensors import Array, array_of
from nvcf_worker.triton.transport import Address, Call, Region

OPTIONS = (
    *WITHOUT_PROXY,
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
READY_TIMEOUT = 5.0
CONTROL_TIMEOUT = 10.0
STREAM_ERRORS = (("triton_grpc_error", "true"),)
"""Asks Triton to end a stream with a status of gRPC instead of a text alone."""


class GrpcTransport:
    """A channel to one server."""

    def __init__(self, address: Address) -> None:
        self._channel = (
            grpc.aio.secure_channel(address.target, grpc.ssl_channel_credentials(), OPTIONS)
            if address.tls
            else grpc.aio.insecure_channel(address.target, OPTIONS)
        )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def ready(self) -> bool:
        try:
            answer = await self._stub.ServerReady(pb.ServerReadyRequest(), timeout=READY_TIMEOUT)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def describe(self, model: str, version: str) -> tuple[dict[str, Any], dict[str, Any]]:
        metadata = await _asked(
            self._stub.ModelMetadata, pb.ModelMetadataRequest(name=model, version=version)
        )
        config = await _asked(self._stub.ModelConfig, pb.ModelConfigRequest(name=model, version=version))
        return _dict(metadata), _dict(config.config)

    async def statistics(self, model: str, version: str) -> dict[str, Any]:
        found = await _asked(
            self._stub.ModelStatistics, pb.ModelStatisticsRequest(name=model, version=version)
        )
        return _dict(found)

    async def infer(self, call: Call) -> dict[str, Array]:
        with _refusals():
            response = await self._stub.ModelInfer(_request(call), metadata=tuple(call.headers.items()))
        return _outputs(response, call.output_regions)

    async def stream(self, call: Call) -> AsyncIterator[dict[str, Array]]:
        request = _request(call)
        request.parameters["triton_enable_empty_final_response"].bool_param = True

        async def requests() -> AsyncIterator[Any]:
            yield request

        responses = self._stub.ModelStreamInfer(requests(), metadata=(*call.headers.items(), *STREAM_ERRORS))
        try:
            with _refusals():
                async for part in responses:
                    if part.error_message:
                        raise TritonRefused("INTERNAL", part.error_message)
                    response = part.infer_response
                    final = response.parameters["triton_final_response"].bool_param
                    if response.outputs or not final:
                        yield _outputs(response)
                    if final:
                        return
        finally:
            responses.cancel()

    async def register(self, region: Region, key: str) -> None:
        request = pb.SystemSharedMemoryRegisterRequest(name=region.name, key=key, byte_size=region.size)
        await _asked(self._stub.SystemSharedMemoryRegister, request)

    async def unregister(self, name: str) -> None:
        request = pb.SystemSharedMemoryUnregisterRequest(name=name)
        await _asked(self._stub.SystemSharedMemoryUnregister, request)

    async def regions(self) -> dict[str, str]:
        found = await _asked(self._stub.SystemSharedMemoryStatus, pb.SystemSharedMemoryStatusRequest())
        return {name: region.key for name, region in found.regions.items()}

    async def close(self) -> None:
        await self._channel.close()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise TritonRefused(error.code().name, error.details() or "no reason given") from None


async def _asked(method: Callable[..., Awaitable[Any]], request: Any) -> Any:
    with _refusals():
        return await method(request, timeout=CONTROL_TIMEOUT)


def _dict(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found


def _request(call: Call) -> Any:
    spec = call.spec
    request = pb.ModelInferRequest(model_name=spec.name, model_version=spec.version, id=call.id)
    parameters = request.parameters
    if call.priority:
        parameters["priority"].uint64_param = call.priority
    if call.wait_microseconds is not None:
        parameters["timeout"].int64_param = call.wait_microseconds
    if call.sequence is not None:
        number, start, end = call.sequence
        if isinstance(number, str):
            parameters["sequence_id"].string_param = number
        else:
            parameters["sequence_id"].int64_param = number
        parameters["sequence_start"].bool_param = start
        parameters["sequence_end"].bool_param = end
    for tensor in call.tensors:
        given = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        region = call.input_regions.get(tensor.name)
        if region is None:
            request.raw_input_contents.append(tensor.content())
        else:
            _place(given, region)
    if call.output_regions:
        for output in spec.outputs:
            wanted = request.outputs.add(name=output.name)
            region = call.output_regions.get(output.name)
            if region is not None:
                _place(wanted, region)
    return request


def _place(tensor: Any, region: Region) -> None:
    tensor.parameters["shared_memory_region"].string_param = region.name
    tensor.parameters["shared_memory_byte_size"].int64_param = region.size
    if region.offset:
        tensor.parameters["shared_memory_offset"].int64_param = region.offset


def _outputs(response: Any, elsewhere: Collection[str] = ()) -> dict[str, Array]:
    """Return the outputs, without those that are in shared memory, whose contents are empty here."""
    return {
        output.name: array_of(content, output.datatype, tuple(output.shape))
        for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
        if output.name not in elsewhere
    }
