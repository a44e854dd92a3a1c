"""How many connections each listener may hold, so that no port takes all descriptors from the others."""

from __future__ import annotations

import resource
from typing import Literal

Port = Literal["http", "sessions", "tunnels", "grpc"]

RESERVE = 128
"""For the broker, files, telemetry and listeners."""
MOST = 1 << 17
_SHARES: dict[Port, float] = {"http": 0.5, "sessions": 0.2, "tunnels": 0.15, "grpc": 0.15}


def raise_limit() -> None:
    """Let this process have as many descriptors as its hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections(port: Port) -> int:
    """Return how many connections a port may hold."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)
    return max(16, int((limit - RESERVE) * _SHARES[port]))


def crowded_out(idle: list[tuple[float, str]], count: int) -> list[int]:
    """Choose `count` idle connections to close; return their places in `idle`.

    Each is its time of becoming idle and its address. Addresses with many go first, and of each address
    those that have been idle for longest.
    """
    of_address: dict[str, int] = {}
    ranked = []
    # Newest first: the n-th of an address has rank n.
    for place in sorted(range(len(idle)), key=lambda place: -idle[place][0]):
        address = idle[place][1]
        of_address[address] = rank = of_address.get(address, 0) + 1
        ranked.append((rank, place))
    ranked.sort(reverse=True)
    return [place for _, place in ranked[:count]]
