"""Shared by all gRPC services of the gateway: the caller's token, and errors as gRPC status."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from grpc.aio import ServicerContext as Context

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.grpc_status import grpc_status
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import parse_id

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def bearer(context: Context[Any, Any]) -> str:
    """Return the token of the metadata `authorization: Bearer <token>`. Raises HttpProblem 401."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return token.strip()
    raise HttpProblem(401, "metadata authorization: Bearer <token> is missing")


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
