"""HTTP errors as gRPC status (protocol.md, sections 4.2 and 7.2)."""

from __future__ import annotations

from nvcf_gateway.errors import HttpProblem

UNKNOWN, UNAVAILABLE = 2, 14

# The numbers are those of google.rpc.Code.
_GRPC_STATUS = {
    400: 3,
    401: 16,
    402: 7,
    403: 7,
    404: 5,
    408: 4,
    409: 6,
    412: 9,
    413: 8,
    429: 8,
    431: 8,
    499: 1,
    500: 13,
    501: 12,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: 4,
}


def is_grpc(content_type: str) -> bool:
    """Whether a call expects errors in the form of gRPC."""
    return content_type.lower().startswith("application/grpc")


def grpc_status(http_status: int) -> int:
    """Return the gRPC status code of an HTTP status."""
    return _GRPC_STATUS.get(http_status, UNKNOWN)


def percent_encode(text: str) -> str:
    """Encode a grpc-message: UTF-8, with '%' and everything but printable ASCII as %XX (gRPC over HTTP/2)."""
    return "".join(
        chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}" for byte in text.encode()
    )


def grpc_trailers(problem: HttpProblem) -> list[tuple[str, str]]:
    """Return `grpc-status` and `grpc-message` of a problem."""
    message = problem.problem.detail or problem.problem.title
    return [("grpc-status", str(grpc_status(problem.status))), ("grpc-message", percent_encode(message))]
