"""Undecodable messages are refused as INVALID_ARGUMENT, methods that are not served as UNIMPLEMENTED.

Left alone, the library writes a traceback into the log for each, and anybody may send them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

_DETAIL = "the message cannot be decoded"
_UNREADABLE = object()

Context = grpc.aio.ServicerContext


def _lenient(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode_or_mark(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _UNREADABLE

    return decode_or_mark


async def _readable(messages: AsyncIterator[Any], context: Context[Any, Any]) -> AsyncIterator[Any]:
    async for message in messages:
        if message is _UNREADABLE:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _DETAIL)
        yield message


class Decoding(grpc.aio.ServerInterceptor):
    """Puts itself between the decoding of messages and the services."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call, guarded."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        decode = _lenient(handler.request_deserializer)
        if not handler.request_streaming and not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(
                _unary(handler.unary_unary), decode, handler.response_serializer
            )
        if not handler.request_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _unary_stream(handler.unary_stream), decode, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _stream(handler.stream_stream), decode, handler.response_serializer
            )
        return handler


def _unary(serve: Any) -> Any:
    async def guarded(message: Any, context: Context[Any, Any]) -> Any:
        if message is _UNREADABLE:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _DETAIL)
        try:
            return await serve(message, context)
        except NotImplementedError:
            # What generated base classes do for a method that is not served.
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not served here")

    return guarded


def _unary_stream(serve: Any) -> Any:
    async def guarded(message: Any, context: Context[Any, Any]) -> AsyncIterator[Any]:
        if message is _UNREADABLE:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _DETAIL)
        try:
            async for answer in serve(message, context):
                yield answer
        except NotImplementedError:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not served here")

    return guarded


def _stream(serve: Any) -> Any:
    # An async generator like what it guards: grpc.aio tells handlers apart by that.
    async def guarded(messages: AsyncIterator[Any], context: Context[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for answer in serve(_readable(messages, context), context):
                yield answer
        except NotImplementedError:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not served here")

    return guarded
