"""Serve `/metrics` for Prometheus, on a port and threads of its own."""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import socketserver
import threading
from collections.abc import Callable

from nvcf_otel.errors import MetricsAddressError

log = logging.getLogger("nvcf_otel")

PATH = "/metrics"
CLIENT_TIMEOUT = 10.0

Page = Callable[[str], tuple[bytes, str]]
"""Returns the page's text and media type for an Accept header."""


def parse_address(text: str) -> tuple[str, int]:
    """Read `HOST:PORT`: an empty host is every interface, port 0 a free one. Raises MetricsAddressError."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise MetricsAddressError(f"the address for metrics is {text!r}; it must be HOST:PORT")
    return host.strip("[]"), int(port)


class MetricsServer:
    """HTTP server that runs until `close`. Raises MetricsAddressError when it cannot listen."""

    def __init__(self, address: str, page: Page) -> None:
        host, port = parse_address(address)
        handler = type("Handler", (_Handler,), {"page": staticmethod(page)})
        try:
            self._server = (_Server6 if ":" in host else _Server)((host, port), handler)
        except OSError as error:
            raise MetricsAddressError(
                f"metrics cannot be served at {address} ({error.strerror or error}); give a free HOST:PORT"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="nvcf-metrics", daemon=True, args=(0.1,)
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Return the port it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # All Prometheus servers may scrape at the same moment.
    request_queue_size = 64

    def server_bind(self) -> None:
        """Bind without the reverse DNS lookup of HTTPServer."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", int(self.server_address[1])


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(http.server.BaseHTTPRequestHandler):
    page: Page
    protocol_version = "HTTP/1.1"
    timeout = CLIENT_TIMEOUT

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PATH:
            self._answer(404, b"metrics are at /metrics\n", "text/plain")
            return
        try:
            body, media_type = self.page(self.headers.get("Accept", ""))
        except Exception:
            log.exception("metrics could not be collected")
            self._answer(500, b"metrics could not be collected; the log says why\n", "text/plain")
            return
        self._answer(200, body, media_type)

    def _answer(self, status: int, body: bytes, media_type: str) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the base class
        log.debug(format, *args)
