"""How many slots a worker has when nobody says so."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from nvcf_proto.environment import MAX_REQUEST_CONCURRENCY
from nvcf_worker.function.adaptive import Adaptive


def choose(
    concurrency: int | Adaptive | None, environ: Mapping[str, str], *, useful: int
) -> int | Adaptive | None:
    """The argument of `serve`, else None for the deployment's number if it is above 1, else `useful`.

    A deployment's 1 is only its default, and with one slot a batch never has a second item.
    """
    if concurrency is not None:
        return concurrency
    text = environ.get(MAX_REQUEST_CONCURRENCY, "").strip()
    set_there = text not in ("", "1")
    return None if set_there or useful <= 1 else useful


def useful_slots() -> int:
    """What the batch functions of this program can fill; 1 without any."""
    settings: Any = sys.modules.get("nvcf_worker.run.batching.settings")
    return 1 if settings is None else int(settings.suggested_concurrency())


def most(concurrency: int | Adaptive | None, environ: Mapping[str, str]) -> int:
    """The highest number of slots that follows; what is malformed in the environment is told elsewhere."""
    if isinstance(concurrency, Adaptive):
        return concurrency.max
    if concurrency is not None:
        return concurrency
    text = environ.get(MAX_REQUEST_CONCURRENCY, "").strip()
    return int(text) if text.isascii() and text.isdigit() else 1
