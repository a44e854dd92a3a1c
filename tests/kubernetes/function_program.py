"""What runs in the pods of tests: a function, a worker's health server, and programs that fail."""

from __future__ import annotations

import http.server
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

DRAIN_SECONDS = 1.5
drained = threading.Event()


class Health(http.server.BaseHTTPRequestHandler):
    """Answers as a worker's health server does."""

    def do_GET(self) -> None:
        if self.path == "/v1/health/drained":
            drained.wait()
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: the output is for what the container finds."""


def say(name: str) -> None:
    """Write a time to where the kubelet reads a container's last words."""
    with open("/dev/termination-log", "a") as log:
        log.write(f"{name} {time.time()}\n")


def on_sigterm(*_: object) -> None:
    say("told")
    if "HEALTH_PORT" in os.environ:
        time.sleep(DRAIN_SECONDS)
        drained.set()
        say("drained")
    os._exit(0)


def view() -> dict[str, object]:
    """Return what the container finds."""
    secrets = Path("/var/secrets/secrets.json")
    Path("/dev/shm/test").write_text("x")
    return {
        "uid": os.getuid(),
        "environ": dict(os.environ),
        "models": sorted(str(path) for path in Path("/config/models").rglob("*") if path.is_file()),
        "secrets": json.loads(secrets.read_text()) if secrets.exists() else None,
        "token": Path("/var/run/secrets/kubernetes.io").exists(),
    }


def main() -> None:
    """Run as the first argument says."""
    role = sys.argv[1] if len(sys.argv) > 1 else "serve"
    signal.signal(signal.SIGTERM, on_sigterm)
    if role == "crash":
        sys.stderr.write("Traceback: no weights\n")
        sys.exit(3)
    if role == "eat":
        eaten = []
        while True:
            eaten.append(bytearray(2**24))
    if "HEALTH_PORT" in os.environ:
        server = http.server.ThreadingHTTPServer(("", int(os.environ["HEALTH_PORT"])), Health)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    seen: object = None
    while True:
        now = view()
        if now != seen:
            sys.stdout.write(json.dumps(now) + "\n")
            sys.stdout.flush()
            seen = now
        time.sleep(0.2)


if __name__ == "__main__":
    main()
