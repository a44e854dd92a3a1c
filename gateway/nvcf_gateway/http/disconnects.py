"""Noticing that a caller left while its upload stands still.

Back-pressure stops reading from the caller's socket, and who does not read does not learn that the other
side has gone. The kernel knows of a reset, and of a close once all data before it fits into its buffer: the
connection's TCP state is asked twice a second (Linux). In all other cases the poll time ends the wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

LOOK_EVERY = 0.5
# States of linux/tcp_states.h in which the peer can still send.
_ALIVE = frozenset((1, 4, 5))  # ESTABLISHED, FIN_WAIT1, FIN_WAIT2


def has_left(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer of a TCP connection has closed it, read or unread data aside."""
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_INFO", None)
    if connection is None or option is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        state: bytes = connection.getsockopt(socket.IPPROTO_TCP, option, 1)
    except OSError:
        return True
    return state[0] not in _ALIVE


@contextlib.contextmanager
def watched(transport: asyncio.Transport | None) -> Iterator[None]:
    """Cut the connection, which cancels its handler, as soon as its peer is found to have left."""
    if transport is None:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal timer
        if timer is not None and has_left(transport):
            transport.abort()
        else:
            timer = loop.call_later(LOOK_EVERY, look)

    look()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
