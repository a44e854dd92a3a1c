"""The concurrency of a worker: a limit found from latency, and the default. Decisions only, no clock."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvcf_proto.environment import MAX_REQUEST_CONCURRENCY
from nvcf_worker.errors import HandlerError

MIN_SAMPLES = 10
PROBE_SECONDS = 30.0
SMALLEST_FACTOR = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptive:
    """Settings of `concurrency=Adaptive(min=1, max=64)`: as many requests as latency allows.

    min, max: bounds of the limit. tolerance: how much slower than alone a request may become; 1.5 means by
    half. start: the first limit; `min` by default. Raises HandlerError for settings that make no sense.
    """

    min: int = 1
    max: int = 64
    tolerance: float = 1.5
    start: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.max <= 16_384:
            raise HandlerError(f"Adaptive: 1 <= min <= max <= 16384 must hold; got {self.min} and {self.max}")
        if not self.tolerance > 1:
            raise HandlerError(f"Adaptive: tolerance is {self.tolerance}; it must be above 1")
        if self.start is not None and not self.min <= self.start <= self.max:
            raise HandlerError(f"Adaptive: start is {self.start}; it must lie between min and max")


class AdaptiveLimit:
    """A limit that follows the latencies of finished requests.

    After each window of samples the limit is multiplied by `tolerance * alone / now`, the latency of
    requests that do not wait for each other over the present one (between 0.5 and 1), and raised by its
    square root: it grows while latency does not suffer and settles where queueing begins (the gradient of
    Envoy's adaptive concurrency filter). It grows only while it is made use of. `alone` is the lowest latency
    seen; every 30 s of use the limit is halved for a window to see whether that still holds. A window only
    counts requests that began in it, so that what was started under another limit does not mislead.
    """

    def __init__(self, settings: Adaptive, now: float) -> None:
        self._settings = settings
        self._estimate = float(settings.start if settings.start is not None else settings.min)
        self._alone = math.inf
        self._samples: list[float] = []
        self._most_in_flight = 0
        self._window_began = now
        self._probed_at = now
        self._probing = False

    @property
    def limit(self) -> int:
        """Return how many requests may be in flight now."""
        estimate = self._estimate / 2 if self._probing else self._estimate
        return max(self._settings.min, min(self._settings.max, int(estimate)))

    def finished(self, *, began: float, now: float, in_flight: int) -> bool:
        """Add a request that has succeeded; return whether the limit may have changed.

        in_flight: requests in flight, with this one. Failed and cancelled requests must not be added: their
        latency says nothing about load.
        """
        self._most_in_flight = max(self._most_in_flight, in_flight)
        if began < self._window_began:
            return False
        self._samples.append(now - began)
        if len(self._samples) < max(MIN_SAMPLES, self.limit):
            return False
        self._end_window(now)
        return True

    def _end_window(self, now: float) -> None:
        # The median, without the module `statistics`, whose import costs more than all of this package's.
        latency = max(sorted(self._samples)[len(self._samples) // 2], 1e-6)
        # Half of the limit in use is enough to tell what the limit does.
        used = self._most_in_flight * 2 >= self.limit
        if self._probing:
            self._alone, self._probing, self._probed_at = latency, False, now
        else:
            self._alone = min(self._alone, latency)
            self._adjust(latency, used=used)
            if used and now - self._probed_at >= PROBE_SECONDS and self.limit > self._settings.min:
                self._probing = True
        self._samples.clear()
        self._most_in_flight = 0
        self._window_began = now

    def _adjust(self, latency: float, *, used: bool) -> None:
        factor = max(SMALLEST_FACTOR, min(1.0, self._settings.tolerance * self._alone / latency))
        target = self._estimate * factor + math.sqrt(self._estimate)
        if target > self._estimate and not used:
            return
        self._estimate = max(float(self._settings.min), min(float(self._settings.max), target))


def choose(
    concurrency: int | Adaptive | None, environ: Mapping[str, str], *, useful: int
) -> int | Adaptive | None:
    """Return the argument of `serve`, else None for the deployment's number if it is above 1, else `useful`.

    A deployment's 1 is only its default, and with one slot a batch never has a second item.
    """
    if concurrency is not None:
        return concurrency
    text = environ.get(MAX_REQUEST_CONCURRENCY, "").strip()
    set_there = text not in ("", "1")
    return None if set_there or useful <= 1 else useful


def useful_slots() -> int:
    """Return how many slots the batch functions of this program can fill; 1 without any."""
    settings: Any = sys.modules.get("nvcf_worker.run.batching.settings")
    return 1 if settings is None else int(settings.suggested_concurrency())


def most(concurrency: int | Adaptive | None, environ: Mapping[str, str]) -> int:
    """Return the highest number of slots. A malformed number in the environment is reported elsewhere."""
    if isinstance(concurrency, Adaptive):
        return concurrency.max
    if concurrency is not None:
        return concurrency
    text = environ.get(MAX_REQUEST_CONCURRENCY, "").strip()
    return int(text) if text.isascii() and text.isdigit() else 1
