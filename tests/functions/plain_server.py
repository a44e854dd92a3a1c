"""A user's server from the standard library: `plain_server.py PORT`. Files control its health.

`/ready` is 200 unless the file `unhealthy` exists in the folder STATE; `/slow` waits
until the file `gate` exists; `/die` adds a byte to the file `deaths` and kills the server; anything else is
echoed with a few headers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STATE = Path(os.environ.get("STATE", "."))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/ready":
            self._respond(503 if (STATE / "unhealthy").exists() else 200, b"")
        else:
            self._respond(200, self.path.encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path == "/slow":
            (STATE / "began").touch()
            while not (STATE / "gate").exists():
                time.sleep(0.02)
        if self.path == "/die":
            with (STATE / "deaths").open("ab") as deaths:
                deaths.write(b"x")
            os.kill(os.getpid(), signal.SIGKILL)
        token = os.environ.get("NVCF_WORKER_TOKEN", "")
        shown = {"body": body.decode(), "id": self.headers["NVCF-REQID"], "token": token, "pid": os.getpid()}
        self._respond(200, json.dumps(shown).encode())

    def _respond(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
        pass


def leave(number: int, frame: object) -> None:
    (STATE / "ended").touch()
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
