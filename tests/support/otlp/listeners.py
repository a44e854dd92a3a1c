"""The listeners of an OTLP receiver: gRPC, HTTP, and one without a protocol."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import os
import socket
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests.support.otlp.receiver import Mode, OtlpReceiver

MAX_BYTES = 64 * 1024 * 1024
# An answer that no protobuf decoder takes: a field of a wire type that does not exist.
GARBAGE = b"\x0f\xff\xff\xff"

REQUESTS: dict[str, Any] = {
    "/v1/traces": trace_service_pb2.ExportTraceServiceRequest,
    "/v1/metrics": metrics_service_pb2.ExportMetricsServiceRequest,
    "/v1/logs": logs_service_pb2.ExportLogsServiceRequest,
}
SERVICES: dict[str, Any] = {
    f"opentelemetry.proto.collector.{name}": REQUESTS[path]
    for name, path in (
        ("trace.v1.TraceService", "/v1/traces"),
        ("metrics.v1.MetricsService", "/v1/metrics"),
        ("logs.v1.LogsService", "/v1/logs"),
    )
}


def _answer(request: type[Any], partial: bool) -> bytes:
    if not partial:
        return b""
    if request is trace_service_pb2.ExportTraceServiceRequest:
        traces = trace_service_pb2.ExportTracePartialSuccess(rejected_spans=1, error_message="one rejected")
        return trace_service_pb2.ExportTraceServiceResponse(partial_success=traces).SerializeToString()
    if request is metrics_service_pb2.ExportMetricsServiceRequest:
        points = metrics_service_pb2.ExportMetricsPartialSuccess(
            rejected_data_points=1, error_message="one rejected"
        )
        return metrics_service_pb2.ExportMetricsServiceResponse(partial_success=points).SerializeToString()
    records = logs_service_pb2.ExportLogsPartialSuccess(rejected_log_records=1, error_message="one rejected")
    return logs_service_pb2.ExportLogsServiceResponse(partial_success=records).SerializeToString()


class GrpcListener:
    """OTLP over gRPC on `port`."""

    def __init__(self, receiver: OtlpReceiver, port: int) -> None:
        self._receiver = receiver
        # Stalled requests hold a thread each.
        self._server = grpc.server(
            ThreadPoolExecutor(64),
            options=[("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", MAX_BYTES)],
        )
        for name, request in SERVICES.items():
            handler: Any = grpc.unary_unary_rpc_method_handler(self._export(request))
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(name, {"Export": handler}),)
            )
        if not self._server.add_insecure_port(f"127.0.0.1:{port}"):
            raise RuntimeError(f"port {port} is taken")
        self._server.start()

    def _export(self, request: type[Any]) -> Any:
        def export(data: bytes, context: grpc.ServicerContext) -> bytes:
            receiver = self._receiver
            mode = receiver.mode
            receiver.attempt()
            if mode is Mode.STALL:
                receiver.stall()
                context.abort(grpc.StatusCode.UNAVAILABLE, "was stalled")
            if mode is Mode.RETRYABLE:
                context.set_trailing_metadata(
                    (("grpc-status-details-bin", _retry_info(receiver.retry_after)),)
                )
                context.abort(grpc.StatusCode.UNAVAILABLE, "try again")
            if mode is Mode.REFUSED:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not wanted")
            if mode is Mode.CORRUPT:
                return self._corrupt(context)
            try:
                message = request.FromString(data)
            except DecodeError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            if mode is Mode.SLOW:
                receiver.stall(receiver.delay)
            headers = {key.lower(): str(value) for key, value in context.invocation_metadata()}
            # grpc takes the header away from the metadata when it decompresses.
            receiver.add(message, "grpc", headers, headers.get("grpc-encoding", "identity"))
            return _answer(request, mode is Mode.PARTIAL)

        return export

    def _corrupt(self, context: grpc.ServicerContext) -> bytes:
        turn = next(self._receiver.turns) % 3
        if turn == 0:
            return GARBAGE
        if turn == 1:
            context.abort(grpc.StatusCode.INTERNAL, "broken inside")
        context.send_initial_metadata((("x-half", "yes"),))
        context.abort(grpc.StatusCode.DATA_LOSS, "cut off")
        raise AssertionError("abort raises")

    def close(self) -> None:
        """Close the listener and abort all connections."""
        self._server.stop(0).wait(5)


def _retry_info(seconds: float) -> bytes:
    delay = Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    detail = AnyMessage()
    detail.Pack(RetryInfo(retry_delay=delay))
    status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="try again", details=[detail])
    return bytes(status.SerializeToString())


class HttpListener:
    """OTLP over HTTP with protobuf bodies on `port`."""

    def __init__(self, receiver: OtlpReceiver, port: int) -> None:
        self._connections: set[socket.socket] = set()
        listener = self

        class Handler(_HttpHandler):
            def setup(self) -> None:
                listener._connections.add(self.request)
                super().setup()

            def finish(self) -> None:
                listener._connections.discard(self.request)
                with contextlib.suppress(OSError):
                    super().finish()

        Handler.receiver = receiver
        self._server = _HttpServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the listener and abort all connections."""
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._connections):
            _cut(connection)
        self._thread.join(5)


class _HttpServer(http.server.ThreadingHTTPServer):
    allow_reuse_port = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing, because disconnects are part of these tests."""


class _HttpHandler(http.server.BaseHTTPRequestHandler):
    receiver: OtlpReceiver
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Log nothing."""

    def do_POST(self) -> None:
        """Serve one export request."""
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        receiver = self.receiver
        mode = receiver.mode
        receiver.attempt()
        request = REQUESTS.get(self.path)
        if request is None:
            self._send(404, b"no such path")
        elif self.headers.get("content-type") != "application/x-protobuf":
            self._send(415, b"only protobuf is taken here")
        elif mode is Mode.STALL:
            receiver.stall()
            self.close_connection = True
        elif mode is Mode.RETRYABLE:
            self._send(429, b"", {"Retry-After": str(max(1, round(receiver.retry_after)))})
        elif mode is Mode.REFUSED:
            self._send(400, Status(code=3, message="not wanted").SerializeToString())
        elif mode is Mode.CORRUPT:
            self._corrupt()
        else:
            self._keep(request, body, mode)

    def _keep(self, request: type[Any], body: bytes, mode: Mode) -> None:
        encoding = self.headers.get("content-encoding", "identity")
        try:
            message = request.FromString(_decompressed(body, encoding))
        except (DecodeError, OSError, zlib.error, ValueError) as error:
            self._send(400, str(error).encode())
            return
        if mode is Mode.SLOW:
            self.receiver.stall(self.receiver.delay)
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.receiver.add(message, "http", headers, encoding)
        self._send(200, _answer(request, mode is Mode.PARTIAL))

    def _corrupt(self) -> None:
        turn = next(self.receiver.turns) % 3
        if turn == 0:
            self._send(200, GARBAGE)
        elif turn == 1:
            self._send(500, b"<html>broken inside</html>", {"Content-Type": "text/html"})
        else:
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 1000\r\n\r\n\x0a"
            )
            self.wfile.flush()
            self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/x-protobuf", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _decompressed(body: bytes, encoding: str) -> bytes:
    if encoding == "identity":
        return body
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "deflate":
        return zlib.decompress(body)
    raise ValueError(f"content-encoding {encoding} is not known here")


class RawListener:
    """Accepts connections on `port`. It reads nothing, or sends noise and closes."""

    def __init__(self, receiver: OtlpReceiver, port: int) -> None:
        self._receiver = receiver
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(128)
        self._noisy = receiver.mode is Mode.NOISE
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self._receiver.connections += 1
                if self._noisy:
                    with contextlib.suppress(OSError):
                        connection.sendall(os.urandom(512))
                    _cut(connection)

    def close(self) -> None:
        """Close the listener and abort all connections."""
        # Closing alone does not wake up a thread inside accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            _cut(connection)
        self._thread.join(5)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        connection.close()
