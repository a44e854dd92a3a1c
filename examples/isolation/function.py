"""Work that may crash or hold the interpreter, in processes of its own.

    nvcf deploy examples/isolation/function.py --name primes
    nvcf invoke primes --data '{"below": 200000}'
    nvcf invoke primes --data '{"below": 1000, "crash": true}'

Counting primes in plain Python keeps the interpreter busy, so threads would not help; two processes use two
cores. `"crash": true` makes the process fall over a null pointer, as native libraries now and then do: the
request is tried once more, then its caller is told what happened. Nobody else notices.
"""

from __future__ import annotations

import ctypes
import math
import os
from typing import Any

from nvcf_worker import BadInput, SyncRequest, serve

MOST = 5_000_000


def primes_below(limit: int) -> int:
    """How many there are: the sieve of Eratosthenes."""
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
    """`{"below": N}` -> `{"primes": M}`, and which process counted."""
    body = request.json()
    below = body.get("below") if isinstance(body, dict) else None
    if isinstance(below, bool) or not isinstance(below, int) or not 0 <= below <= MOST:
        raise BadInput(f"below must be a whole number from 0 to {MOST:,}")
    if body.get("crash"):
        ctypes.string_at(0)
    return {"primes": primes_below(below), "pid": os.getpid(), "attempt": request.attempt}


if __name__ == "__main__":
    serve(handler, isolation="process", processes=2)
