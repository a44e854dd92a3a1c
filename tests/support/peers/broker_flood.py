"""A worker that floods a subject of the broker, as a process of its own: it speaks the protocol by hand.

`python -m tests.support.peers.broker_flood HOST:PORT TOKEN SECONDS SUBJECT PAYLOAD_BYTES BYTES_PER_SECOND`
prints how many messages it sent, until the time was over or the broker ended its connection, which it says on
stderr.
"""

from __future__ import annotations

import json
import socket
import sys
import time


def main(address: str, token: str, seconds: float, subject: str, size: int, rate: int) -> int:
    """Flood until the time is over or the connection is ended. Returns how many messages were sent."""
    host, _, port = address.rpartition(":")
    message = f"PUB {subject} _INBOX.x {size}\r\n".encode() + b"x" * size + b"\r\n"
    batch = message * max(1, 60_000 // len(message))
    sent, began = 0, time.monotonic()
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        assert connection.recv(65536).startswith(b"INFO")
        options = {"auth_token": token, "verbose": False, "pedantic": False, "protocol": 1, "lang": "raw"}
        connection.sendall(b"CONNECT " + json.dumps({**options, "version": "1"}).encode() + b"\r\nPING\r\n")
        assert b"PONG" in connection.recv(65536)
        while time.monotonic() - began < seconds:
            try:
                connection.sendall(batch)
            except ConnectionError as error:
                print("the broker ended the connection:", error, file=sys.stderr)  # noqa: T201
                break
            sent += len(batch)
            time.sleep(max(0.0, sent / rate - (time.monotonic() - began)))
    return sent // len(message)


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6])))  # noqa: T201
