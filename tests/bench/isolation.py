"""Cost of child processes: a 1 KiB echo in them and in the worker's own process."""

from __future__ import annotations

from tests.bench.modes import modes, rate


async def run() -> None:
    """Measure an echo. It is the worst case, because there is no work but the transport."""
    async with modes({"SLOTS": "64"}, {"SLOTS": "64", "PROCESSES": "1"}) as (thread, process):
        for callers in (1, 16):
            inside = await rate(thread, "/echo", callers)
            outside = await rate(process, "/echo", callers)
            print(f"{callers:>3} callers, thread:  {inside}, worker CPU {inside.cpu:.3f} ms a request")
            print(f"{callers:>3} callers, process: {outside}, worker CPU {outside.cpu:.3f} ms a request")
            share, cpu = outside.per_second / inside.per_second, outside.cpu / inside.cpu
            print(
                f"{callers:>3} callers, process to thread: {share:.2f} of the requests, "
                f"{outside.median - inside.median:+.2f} ms p50, {cpu:.2f} times the worker's CPU"
            )
