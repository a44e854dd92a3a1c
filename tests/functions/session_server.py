"""A function with its own gRPC server in the worker's process: `serve(handler, session_port=...)`."""

from __future__ import annotations

from concurrent import futures

import grpc

from nvcf_worker import serve


def handler(request: object) -> str:
    """Respond to callers without a session."""
    return "no session"


def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Respond to a gRPC call."""
    return b"in process: " + request


def main() -> None:
    """Start the server on a free port, then serve."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Echo": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    serve(handler, session_port=port)
    server.stop(0)


main()
