"""The gRPC server: its listener and health service, callers' tokens, and errors as gRPC status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.access.worker_tokens import InvalidWorkerToken, WorkerTokens
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import HttpProblem, SetupError
from nvcf_gateway.http.descriptors import most_connections
from nvcf_gateway.http.grpc_status import grpc_status
from nvcf_gateway.http.tls import grpc_credentials
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import parse_id
from nvcf_proto.tokens import TASK_TOKEN_AUDIENCE

CHECK_EVERY_SECONDS = 1.0
# `HealthCheckResponse` of the gRPC health checking protocol: field 1 is the status.
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"
_UNREADABLE = object()
HEALTH = "grpc.health.v1.Health"
MAX_WATCHERS = 256
MESSAGE_SECONDS = 30.0
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Context = grpc.aio.ServicerContext
T = TypeVar("T")


def new_server(is_healthy: Callable[[], bool], check: Callable[[str], object]) -> grpc.aio.Server:
    """Return a server with the health service; `is_healthy` speaks for all services of the port.

    `check` raises HttpProblem 401 for a token that is none of this installation.
    """
    server = grpc.aio.server(
        interceptors=[KnownTokens(check), ErrorStatus()],
        options=[
            ("grpc.max_receive_message_length", 64 * 1024),
            ("grpc.so_reuseport", 0),
            # Clients in Go may ping every 10 s, with and without calls in flight.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
            ("grpc.max_concurrent_streams", 128),
            ("grpc.max_allowed_incoming_connections", most_connections("grpc")),
            ("grpc.server_handshake_timeout_ms", 10_000),
            ("grpc.max_connection_idle_ms", 330_000),
        ],
    )
    _add_health_service(server, is_healthy)
    return server


async def serve(stack: AsyncExitStack, config: GatewayConfig, server: grpc.aio.Server) -> str:
    """Listen until `stack` is closed; return `host:port` as bound. Raises SetupError."""
    host, port = config.grpc
    credentials = grpc_credentials(config)
    try:
        if credentials is None:
            bound = server.add_insecure_port(f"{host}:{port}")
        else:
            bound = server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        raise SetupError(
            f"cannot listen on {host}:{port} (gRPC): is the port taken? Choose --grpc"
        ) from error
    await server.start()
    stack.push_async_callback(server.stop, 1.0)
    return f"{host}:{bound}"


def _add_health_service(server: grpc.aio.Server, is_healthy: Callable[[], bool]) -> None:
    """Serve `grpc.health.v1.Health`, for invocation services and load balancers."""

    watchers = 0

    def status() -> bytes:
        return _SERVING if is_healthy() else _NOT_SERVING

    async def check(request: bytes, context: Context[Any, Any]) -> bytes:
        return status()

    async def watch(request: bytes, context: Context[Any, Any]) -> AsyncIterator[bytes]:
        nonlocal watchers
        if watchers >= MAX_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch the health: use Check")
        sent = b""
        watchers += 1
        try:
            while True:
                current = status()
                if current != sent:
                    yield current
                    sent = current
                await asyncio.sleep(CHECK_EVERY_SECONDS)
        finally:
            watchers -= 1

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Check": grpc.unary_unary_rpc_method_handler(check),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    handler = grpc.method_handlers_generic_handler(HEALTH, handlers)
    server.add_generic_rpc_handlers((handler,))


class KnownTokens(grpc.aio.ServerInterceptor):
    """Ends calls without a known token before their message: a call that sends none would stay open."""

    def __init__(self, check: Callable[[str], object]) -> None:
        self._check = check

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a call, or one that refuses it."""
        details = handler_call_details
        if details.method.startswith(f"/{HEALTH}/"):
            return await continuation(details)
        try:
            self._check(_bearer_of(details.invocation_metadata))
            return await continuation(details)
        except HttpProblem as error:
            refusal = error

        async def refuse(requests: AsyncIterator[bytes], context: Context[Any, Any]) -> AsyncIterator[bytes]:
            await abort(context, refusal)
            yield b""

        # A handler of streams is called at once, whatever the method's kind is.
        return grpc.stream_stream_rpc_method_handler(refuse)


class ErrorStatus(grpc.aio.ServerInterceptor):
    """Ends calls with a gRPC status: that of an HttpProblem which a handler raises, and two more.

    Undecodable messages are INVALID_ARGUMENT, and methods that are not served UNIMPLEMENTED. By itself the
    library logs a traceback for each, and anybody may send them.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a call, wrapped."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        decode, encode = _lenient(handler.request_deserializer), handler.response_serializer
        if not handler.request_streaming and not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary), decode, encode)
        if not handler.request_streaming:
            return grpc.unary_stream_rpc_method_handler(_streaming(handler.unary_stream), decode, encode)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(_streaming(handler.stream_stream), decode, encode)
        return handler


def check_token(token: str, workers: WorkerTokens, authenticator: Authenticator) -> None:
    """Raise HttpProblem 401 unless the token is a worker's, of a function or a task, or an API key."""
    try:
        workers.verify(token, time.time())
    except InvalidWorkerToken as error:
        if token.count(".") != 2:
            authenticator.identify(token)
            return
        try:
            workers.verify(token, time.time(), TASK_TOKEN_AUDIENCE)
        except InvalidWorkerToken:
            raise HttpProblem(401, str(error)) from None


def bearer(context: Context[Any, Any]) -> str:
    """Return the token of the metadata `authorization: Bearer <token>`. Raises HttpProblem 401."""
    return _bearer_of(context.invocation_metadata())


def _bearer_of(metadata: Any) -> str:
    for key, value in metadata or ():
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return token.strip()
    raise HttpProblem(401, "metadata authorization: Bearer <token> is missing")


async def in_time(messages: AsyncIterator[T], seconds: float = MESSAGE_SECONDS) -> AsyncIterator[T]:
    """Yield a stream's messages. Raises HttpProblem 504 when the next one does not come in time."""
    while True:
        try:
            async with asyncio.timeout(seconds):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise HttpProblem(504, f"no message within {seconds:g} s") from None
        yield message


def checked_id(text: str, field: str) -> str:
    """Return an id in its canonical form. Raises HttpProblem 400."""
    try:
        return parse_id(text, field)
    except InvalidId as error:
        raise HttpProblem(400, str(error)) from None


async def abort(context: Context[Any, Any], problem: HttpProblem) -> NoReturn:
    """End the call with the gRPC status of a problem (the reverse of protocol.md, section 4.2)."""
    await context.abort(_CODES[grpc_status(problem.status)], str(problem))
    raise AssertionError("abort always raises")


def _lenient(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode_or_mark(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _UNREADABLE

    return decode_or_mark


async def _check(message: Any, context: Context[Any, Any]) -> None:
    if message is _UNREADABLE:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message cannot be decoded")


async def _checked(messages: AsyncIterator[Any], context: Context[Any, Any]) -> AsyncIterator[Any]:
    async for message in messages:
        await _check(message, context)
        yield message


async def _not_served(context: Context[Any, Any]) -> None:
    # Generated base classes raise NotImplementedError for methods that are not served.
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not served here")


def _unary(serve: Any) -> Any:
    async def wrapped(message: Any, context: Context[Any, Any]) -> Any:
        await _check(message, context)
        try:
            return await serve(message, context)
        except HttpProblem as problem:
            await abort(context, problem)
        except NotImplementedError:
            await _not_served(context)

    return wrapped


def _streaming(serve: Any) -> Any:
    # An async generator, like the handler it wraps: grpc.aio tells handlers apart by that.
    async def wrapped(request: Any, context: Context[Any, Any]) -> AsyncIterator[Any]:
        if isinstance(request, AsyncIterator):
            request = _checked(request, context)
        else:
            await _check(request, context)
        try:
            async for response in serve(request, context):
                yield response
        except HttpProblem as problem:
            await abort(context, problem)
        except NotImplementedError:
            await _not_served(context)

    return wrapped
