"""Changing a stored record that others may change at the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nvcf_broker.errors import BrokerError, RevisionConflictError
from nvcf_broker.kv import KvMirror
from nvcf_gateway.errors import HttpProblem

T = TypeVar("T")

ATTEMPTS = 5
NEWS_PATIENCE = 0.5


async def amend(mirror: KvMirror[T], key: str, change: Callable[[T], T]) -> T | None:
    """Apply `change` to the newest record under `key`; returns what was written, None if there is no record.

    Raises HttpProblem 409 (changed by others again and again) and 503.
    """
    for _ in range(ATTEMPTS):
        entry = mirror.entry(key)
        if entry is None:
            return None
        changed = change(entry.value)
        if changed == entry.value:
            return changed
        try:
            await mirror.update(key, changed, entry.revision)
        except RevisionConflictError:
            # Somebody was faster: what they wrote is on its way here.
            await mirror.wait_change(NEWS_PATIENCE)
        except BrokerError as error:
            raise HttpProblem(503, str(error), headers={"Retry-After": "1"}) from None
        else:
            return changed
    raise HttpProblem(409, "the record is being changed by others, try again")
