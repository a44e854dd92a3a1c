"""Run work that may crash or block the interpreter in child processes.

    nvcf deploy examples/isolation/function.py --name primes
    nvcf invoke primes --data '{"below": 200000}'
    nvcf invoke primes --data '{"below": 1000, "crash": true}'

Counting primes in plain Python holds the interpreter lock, so threads would not help. Two processes use two
cores. `"crash": true` makes the process read a null pointer, as bugs in native libraries do. The request is
tried once more, then its caller gets an error that names the crash. Other requests are not affected.
"""

from __future__ import annotations

import ctypes
import math
import os
from typing import Any

from nvcf_worker import BadInput, SyncRequest, serve

MOST = 5_000_000


def primes_below(limit: int) -> int:
    """Count the primes below a limit with the sieve of Eratosthenes."""
    if limit <= 2:
        return 0
    sieve = bytearray([1]) * limit
    sieve[0] = sieve[1] = 0
    for number in range(2, math.isqrt(limit - 1) + 1):
        if sieve[number]:
            for multiple in range(number * number, limit, number):
                sieve[multiple] = 0
    return sum(sieve)


def handler(request: SyncRequest) -> dict[str, Any]:
    """Return `{"primes": M}` for `{"below": N}`, with the id of the process that counted."""
    body = request.json()
    below = body.get("below") if isinstance(body, dict) else None
    if isinstance(below, bool) or not isinstance(below, int) or not 0 <= below <= MOST:
        raise BadInput(f"below must be a whole number from 0 to {MOST:,}")
    if body.get("crash"):
        ctypes.string_at(0)
    return {"primes": primes_below(below), "pid": os.getpid(), "attempt": request.attempt}


if __name__ == "__main__":
    serve(handler, isolation="process", processes=2)
