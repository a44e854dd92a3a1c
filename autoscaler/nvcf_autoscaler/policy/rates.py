"""Arrival rate and service time, computed from counters."""

from __future__ import annotations

import math
from typing import NamedTuple

from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.settings import Tuning

# Samples this far apart resolve the panic window and the stable window.
_SPACING = 2.5
_SAMPLES = 24
# The service time forgets half of its past over this many completions.
_SERVICE_HALF_LIFE = 200.0


class Sample(NamedTuple):
    """Cumulative arrivals at an instant."""

    at: float
    arrivals: int


class Rates(NamedTuple):
    """Arrivals over the last stable window, and decayed sums whose quotient is the service time.

    `counted_busy` and `counted_completions` are the counters that the sums include. `load` is the load that
    the last decision used.
    """

    samples: tuple[Sample, ...] = ()
    busy: float = 0.0
    completed: float = 0.0
    counted_busy: float = 0.0
    counted_completions: int = 0
    load: float = 0.0

    def after(self, now: float, seen: Observation, tuning: Tuning) -> Rates:
        """Return the rates with this observation added. Adding it twice changes nothing.

        A counter that decreased (the observer restarted) counts as unchanged.
        """
        samples = self.samples
        window = self.stable_window(tuning)
        if not samples or now - samples[-1].at >= max(_SPACING, window / _SAMPLES):
            first = 0
            while first + 1 < len(samples) and samples[first + 1].at < now - window:
                first += 1
            samples = (*samples[first:], Sample(now, seen.arrivals))
        count = max(0, seen.completions - self.counted_completions)
        busy = max(0.0, seen.busy_seconds - self.counted_busy)
        fade = 0.5 ** (count / _SERVICE_HALF_LIFE) if count else 1.0
        return Rates(
            samples,
            self.busy * fade + busy,
            self.completed * fade + count,
            seen.busy_seconds,
            seen.completions,
            self.load,
        )

    def stable_window(self, tuning: Tuning) -> float:
        """Return the seconds to take the arrival rate over: more where few long requests make it noisy."""
        if self.completed < 1:
            return tuning.stable_window
        window = tuning.stable_services * self.busy / self.completed
        return max(tuning.stable_window, min(tuning.stable_window_max, window))

    def service_time(self, in_flight: int, prior: float) -> float:
        """Return the mean service time: slot-seconds used per completed request (Little's law).

        The prior counts as one request. Until a request completes, the time that those in flight have taken
        so far is the lower bound, so that long requests count before they end.
        """
        if self.completed < 1:
            return max(prior, self.busy / max(1, in_flight))
        return (self.busy + prior) / (self.completed + 1.0)

    def per_second(self, now: float, arrivals: int, window: float, margin: float) -> float:
        """Return arrivals per second over a window, lowered by `margin` standard deviations of the count."""
        since = now - window
        base = self.samples[0]
        for sample in self.samples:
            base = sample
            if sample.at >= since:
                break
        count = max(0, arrivals - base.arrivals)
        # A window that has just begun says little: it counts as at least a third of its length.
        return max(0.0, count - margin * math.sqrt(count)) / max(now - base.at, window / 3.0)
