"""How long each step of an instance may take in a cluster, from how often its agent sends heartbeats. Pure.

An agent of this project sends heartbeats every 2 s and reports at once. NVIDIA's sends them every 300 s and
works in ticks: it fetches messages for 3 s, acknowledges every 5 s and reports every 15 s.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvcf_proto.compute import SILENT_AFTER_SECONDS

REPORT_EVERY = 300.0
"""How often agents repeat the report of an instance that does not change."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds until something is repeated or given up.

    - `acknowledgement`: the order is repeated; `order_expires`: it is given up.
    - `first_report`: the order is repeated although it was acknowledged; `report_expires`: it is given up.
    - `end`: the termination message is repeated.
    - `release`: GPUs of an ended instance count as free although its agent has not released them.
    - `silent_after`: no new instances; `lost_after`: the instances there are lost.
    - `forgotten_after`: an instance that its living agent does not report any more is lost.
    """

    acknowledgement: float
    order_expires: float
    first_report: float
    report_expires: float
    end: float
    release: float
    silent_after: float
    lost_after: float
    forgotten_after: float


def timings_of(heartbeat_seconds: float, lost_after: float) -> Timings:
    """Return the times of a cluster. `lost_after` is the least silence after which instances are lost."""
    lost = max(lost_after, 2.5 * heartbeat_seconds)
    return Timings(
        acknowledgement=_between(3.0, 1.5 * heartbeat_seconds, 15.0),
        order_expires=_between(20.0, 10.0 * heartbeat_seconds, 120.0),
        first_report=_between(10.0, 5.0 * heartbeat_seconds, 60.0),
        report_expires=_between(30.0, 15.0 * heartbeat_seconds, 180.0),
        end=_between(3.0, 1.5 * heartbeat_seconds, 45.0),
        release=_between(15.0, 7.5 * heartbeat_seconds, 600.0),
        silent_after=min(max(SILENT_AFTER_SECONDS, 2.0 * heartbeat_seconds), lost),
        lost_after=lost,
        forgotten_after=2.5 * max(REPORT_EVERY, heartbeat_seconds),
    )


def attempts(waited: float, first: float) -> int:
    """Return how often something is to be repeated after `waited` seconds: at first, 2, 4, 8... times it."""
    count = 0
    due = first
    while due <= waited:
        count += 1
        due *= 2.0
    return count


def _between(least: float, value: float, most: float) -> float:
    return min(most, max(least, value))
