"""Function calls that gateway and worker make for one request of a 1 KiB JSON echo.

Unlike times they do not depend on the machine and its load, so figures of two runs may be compared, as long
as Python and the libraries are the same. `own` counts only this project's functions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.support.platform.call_counts import Counts, count_calls

REQUESTS = 400
MOST_CALLED = 12


async def run() -> None:
    """Print the calls for one request, plain and with an idempotency key, and what is called most."""
    for keyed in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            found = await count_calls(Path(folder), REQUESTS, keyed=keyed)
        print("with an idempotency key" if keyed else "plain")
        for name, counts in found.items():
            print(f"  {name:8} {counts.all:7.0f} calls, {counts.own:5.0f} of them own")
            if not keyed:
                _print_most_called(counts)


def _print_most_called(counts: Counts) -> None:
    for (file, line, name), count in counts.most_called(MOST_CALLED):
        place = "built-in" if file == "~" else f"{file.rpartition('site-packages/')[2][-48:]}:{line}"
        print(f"    {count:6.1f}  {name}  {place}")
