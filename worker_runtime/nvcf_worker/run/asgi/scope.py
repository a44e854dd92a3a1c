"""The HTTP connection scope of one request (ASGI 3, HTTP & WebSocket Message Format 2.4). No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

VERSION = {"version": "3.0", "spec_version": "2.4"}
LIFESPAN_VERSION = {"version": "3.0", "spec_version": "2.0"}


def http_scope(
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]],
    *,
    root_path: str,
    state: dict[str, Any] | None,
    extensions: dict[str, Any],
) -> dict[str, Any]:
    """A scope. `target` is path and query as they were sent.

    There is no connection, so `client` is None and `server` is what the caller's Host header says. The
    path holds `root_path`, as a server's does that is mounted under one.
    """
    path, _, query = target.partition("?")
    path = path if path.startswith("/") else f"/{path}"
    pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": VERSION,
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": _scheme(pairs),
        "path": unquote(root_path + path),
        "raw_path": (root_path + path).encode("latin-1", "replace"),
        "query_string": query.encode("latin-1", "replace"),
        "root_path": root_path,
        "headers": pairs,
        "client": None,
        "server": _server(pairs),
        "extensions": extensions,
    }
    if state is not None:
        scope["state"] = dict(state)
    return scope


def _first(pairs: list[tuple[bytes, bytes]], name: bytes) -> str:
    return next((value for key, value in pairs if key == name), b"").decode("latin-1").strip()


def _scheme(pairs: list[tuple[bytes, bytes]]) -> str:
    return "https" if _first(pairs, b"x-forwarded-proto").lower() == "https" else "http"


def _server(pairs: list[tuple[bytes, bytes]]) -> tuple[str, int | None]:
    host = _first(pairs, b"host")
    name, colon, port = host.rpartition(":")
    if colon and port.isascii() and port.isdigit():
        return name, int(port)
    return host or "localhost", 80
