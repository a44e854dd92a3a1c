"""What all gRPC services of the gateway need: the caller's token, and refusals."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from grpc.aio import ServicerContext as Context

from nvcf_gateway.errors import HttpProblem

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    412: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(status: int) -> grpc.StatusCode:
    """The gRPC status of an HTTP status (section 4, read backwards)."""
    return _CODES.get(status, grpc.StatusCode.INTERNAL)


def bearer(context: Context[Any, Any]) -> str | None:
    """The token of the metadata `authorization: Bearer <token>`."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return token.strip()
    return None


async def abort(context: Context[Any, Any], code: grpc.StatusCode, detail: str) -> NoReturn:
    """End the call with an error."""
    await context.abort(code, detail)
    raise AssertionError("abort always raises")


async def refuse(context: Context[Any, Any], problem: HttpProblem) -> NoReturn:
    """End the call with the gRPC form of a problem."""
    await abort(context, code_of(problem.status), str(problem))
