"""A simple call stays cheap. Function calls are counted, not times: they are the same on every machine.

Only this project's own functions are counted, so neither Python's version nor those of the libraries matter.
A busy machine makes counts smaller rather than larger: what is there already need not be waited for. The
reports that a gateway sends each second are in them, so the limits are a tenth above what `python -m
tests.bench calls` prints.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.platform.call_counts import Counts, count_calls

LIMITS = {"gateway": 250, "worker": 143}
REQUESTS = 200


async def test_a_simple_call_takes_few_function_calls(tmp_path: Path) -> None:
    found = await count_calls(tmp_path, REQUESTS)
    for name, limit in LIMITS.items():
        assert found[name].own <= limit, f"{name}: {found[name].own:.0f} own calls\n{_own(found[name])}"


def _own(counts: Counts) -> str:
    own = [(entry, count) for entry, count in counts.most_called(1000) if "/nvcf_" in entry[0]]
    return "\n".join(f"{count:6.1f} {file}:{line} {name}" for (file, line, name), count in own if count > 0.5)
