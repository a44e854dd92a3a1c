"""A function's own HTTP server, with nothing of the platform in it: the sidecar's side of the bargain.

`POST /echo` answers with its body, `{"sleep": SECONDS}` after that time, `{"exit": CODE}` never.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VERSION = os.environ.get("FUNCTION_VERSION", "1")


class Handler(BaseHTTPRequestHandler):
    """Answer health checks and echo."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a health check."""
        self._answer({"ready": True})

    def do_POST(self) -> None:
        """Do what the body says, and answer with it and the pod's name."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        time.sleep(body.get("sleep", 0))
        if "exit" in body:
            os._exit(body["exit"])
        if "allocate" in body:
            body["allocate"] = len(bytearray(b"x" * body["allocate"]))
        self._answer({"body": body, "pod": socket.gethostname(), "version": VERSION, "mode": "sidecar"})

    def _answer(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the platform does."""


if __name__ == "__main__":
    # The first process of a container is not ended by SIGTERM unless it wants to be.
    if "IGNORE_SIGTERM" not in os.environ:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()  # noqa: S104 - in a pod
