"""What conversations of one worker share: the ways to gateways and their callers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from nvcf_worker.exchange.attach import AttachClient
from nvcf_worker.exchange.deliver import Deliverer
from nvcf_worker.exchange.fallback_gateway import Rescuer

MAX_HELD = 256
"""Answers that may wait without a slot; more would pile up in memory."""

Listen = Callable[[str], Coroutine[Any, Any, Callable[[], Coroutine[Any, Any, None]] | None]]


@dataclass(frozen=True, slots=True)
class Channels:
    """What conversations of one worker share.

    `listen` subscribes to the polls of one request where the worker's own polling subject is not used; it
    returns how to end that. `compatibility_disabled` is V3_BACKWARDS_COMPATIBILITY_DISABLED.
    """

    deliverer: Deliverer
    attach: AttachClient
    rescuer: Rescuer
    listen: Listen
    compatibility_disabled: bool = False
    held: Held = field(default_factory=lambda: Held())


class Held:
    """Counts finished answers that wait for somebody to take them."""

    def __init__(self) -> None:
        self._count = 0

    @contextlib.contextmanager
    def one_more(self) -> Iterator[bool]:
        """Count one; yields whether there are few enough that it need not hold its slot."""
        self._count += 1
        try:
            yield self._count <= MAX_HELD
        finally:
            self._count -= 1
