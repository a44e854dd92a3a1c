"""A function whose own gRPC server lives in the worker's process: `serve(handler, session_port=...)`."""

from __future__ import annotations

from concurrent import futures

import grpc

from nvcf_worker import serve


def handler(request: object) -> str:
    """For callers without a session."""
    return "no session"


def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
    """What the server says."""
    return b"in process: " + request


def main() -> None:
    """Start the server on a free port, then serve."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    echo: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Echo": echo}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    serve(handler, session_port=port)
    server.stop(0)


main()
