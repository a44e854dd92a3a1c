"""Counts words: `POST /` with {"text": "..."} answers {"words": N}. Needs nothing but Python."""

import json
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = 8000
IGNORED = frozenset(json.loads(Path(__file__).with_name("ignored.json").read_text()))


class Words(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer the health check."""
        self.answer(200 if self.path == "/v2/health/ready" else 404, {})

    def do_POST(self) -> None:
        """Count the words of a text."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            words = json.loads(body)["text"].split()
        except (ValueError, KeyError, TypeError, AttributeError):
            self.answer(400, {"error": 'expected {"text": "..."}'})
            return
        self.answer(200, {"words": sum(word.lower() not in IGNORED for word in words)})

    def answer(self, status: int, value: object) -> None:
        """Send a status and a JSON value."""
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    # The first process of a container ignores SIGTERM unless it handles it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer(("", PORT), Words).serve_forever()
