"""Cost of importing the worker: time, and the heavy packages that it imports."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

RUNS = 15
HEAVY = ("grpc", "aiohttp", "nats", "google.protobuf", "opentelemetry", "opentelemetry.sdk")


async def _milliseconds(code: str) -> float:
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    await process.wait()
    return (time.perf_counter() - started) * 1000


async def run() -> None:
    """Print the median times of whole processes, alternately with and without the import."""
    bare, imported = [], []
    for _ in range(RUNS):
        bare.append(await _milliseconds("pass"))
        imported.append(await _milliseconds("import nvcf_worker; nvcf_worker.serve"))
    base, full = statistics.median(bare), statistics.median(imported)
    print(
        f"python alone {base:.1f} ms, with nvcf_worker.serve {full:.1f} ms: import costs {full - base:.1f} ms"
    )
    code = f"import nvcf_worker, sys; nvcf_worker.serve; print([n for n in {HEAVY!r} if n in sys.modules])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    print(f"heavy packages imported: {output.decode().strip()}")
