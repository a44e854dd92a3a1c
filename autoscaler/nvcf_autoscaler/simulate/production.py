"""Arrival traces with the shapes that published characterisations of production services describe.

- Xiang et al., "ServeGen: Workload Characterization and Generation of Large Language Model Serving in
  Production", 2025 (arXiv 2505.09999): load is the sum of clients; a few of them send most requests, each at
  a rate and burstiness of its own that change over time; gamma and Weibull gaps fit better than Poisson.
- Wang et al., "BurstGPT: A Real-World Workload Dataset to Optimize LLM Serving Systems", 2025 (arXiv
  2401.17644): gamma gaps whose shape changes within minutes; more than 5 % of requests fail at times.
- Shahrad et al., "Serverless in the Wild", USENIX ATC 2020: working days and weekends; timers and queues that
  call in batches.
- Schroeder et al., "Open Versus Closed: A Cautionary Tale", NSDI 2006: callers that wait for the answer.

Seeds below 100 may be used to tune the policy. Seeds from 400 are for tables, and run once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from heapq import merge

from nvcf_autoscaler.simulate.arrivals import HOUR, Family, log_uniform, thinned

_STRETCH = 600.0


def _client(rng: random.Random, mean_rate: float, horizon: float) -> Iterator[float]:
    """Yield gamma arrivals. Rate and burstiness change every ten minutes; some stretches are silent."""
    quiet = rng.uniform(0.0, 0.6)
    begin = 0.0
    while begin < horizon:
        end = min(begin + _STRETCH, horizon)
        rate = mean_rate * rng.lognormvariate(-0.32, 0.8) / (1.0 - quiet)
        # The coefficient of variation of a gamma gap is 1 / sqrt(shape): here from 0.7 to 4.
        shape = log_uniform(rng, 1 / 16, 2.0)
        if rng.random() >= quiet:
            at = begin + rng.gammavariate(shape, 1.0 / (rate * shape)) * rng.random()
            while at < end:
                yield at
                at += rng.gammavariate(shape, 1.0 / (rate * shape))
        begin = end


def _one_client(rng: random.Random, horizon: float) -> Iterator[float]:
    """A function of one client, from 20 to 20,000 requests a day."""
    return _client(rng, log_uniform(rng, 20.0, 20_000.0) / (24 * HOUR), horizon)


def _many_clients(rng: random.Random, horizon: float) -> Iterator[float]:
    """Thirty clients whose rates fall as their rank grows (Zipf), so that the first few dominate."""
    first, skew = log_uniform(rng, 0.05, 1.5), rng.uniform(1.0, 1.8)
    return merge(*[_client(rng, first / rank**skew, horizon) for rank in range(1, 31)])


def _jobs(rng: random.Random, horizon: float) -> Iterator[float]:
    """A few clients that each send a batch within seconds, some by a timer, some at random."""
    arrivals: list[float] = []
    for _ in range(rng.randint(1, 4)):
        every, size = log_uniform(rng, 1200.0, 6 * HOUR), log_uniform(rng, 5.0, 150.0)
        timer, width = rng.random() < 0.5, log_uniform(rng, 0.1, 30.0)
        at = rng.random() * every
        while at < horizon:
            arrivals += [
                at + rng.random() * width for _ in range(max(1, round(size * rng.uniform(0.5, 1.5))))
            ]
            at += every if timer else rng.expovariate(1 / every)
    arrivals.sort()
    return iter([arrival for arrival in arrivals if arrival < horizon])


def _week(rng: random.Random, horizon: float) -> Iterator[float]:
    """Office hours from Monday to Friday, little at night and at weekends. Give it `--hours 168`."""
    busy, night = log_uniform(rng, 0.02, 2.0), rng.uniform(0.0, 0.03)
    opens, hours, today = rng.uniform(7.0, 10.0), rng.uniform(8.0, 11.0), rng.randrange(7)

    def rate(at: float) -> float:
        day, hour = divmod(at / HOUR, 24.0)
        working = (day + today) % 7 < 5 and opens <= hour < opens + hours
        return busy if working else busy * night

    return thinned(rng, rate, busy, horizon)


def _retries(rng: random.Random, horizon: float) -> Iterator[float]:
    """Calls of which some fail, most of them in outages of minutes. A failed one is repeated up to 5 times.

    Pauses double from one second on, with full jitter.
    """
    mean, every = log_uniform(rng, 0.01, 1.0), log_uniform(rng, 1800.0, 4 * HOUR)
    usual, length = rng.uniform(0.005, 0.05), log_uniform(rng, 60.0, 600.0)
    phase = rng.random() * every
    arrivals: list[float] = []
    for first in thinned(rng, lambda at: mean, mean, horizon):
        at = first
        for attempt in range(6):
            arrivals.append(at)
            share = 0.8 if (at + phase) % every < length else usual
            if rng.random() >= share:
                break
            at += 0.1 + rng.random() * 2.0**attempt
    arrivals.sort()
    return iter([arrival for arrival in arrivals if arrival < horizon])


def _closed(rng: random.Random, horizon: float) -> Iterator[float]:
    """Callers that wait for the answer and think before the next call: the gaps are between their calls."""
    return _many_clients(rng, horizon)


PRODUCTION: dict[str, Family] = {
    "client": _one_client,
    "clients": _many_clients,
    "jobs": _jobs,
    "week": _week,
    "retries": _retries,
    "closed": _closed,
}
