"""Metrics of one gateway: integers and buckets on the request path, read when they are collected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Protocol

from opentelemetry import metrics as otel_metrics
from opentelemetry.metrics import CallbackOptions, Observation

from nvcf_gateway.errors import HttpProblem
from nvcf_otel import instruments, names
from nvcf_otel.cardinality import OTHER, Bounded
from nvcf_otel.histograms import Series, histogram

UNKNOWN = "none"
"""Function of a request that was refused before its function was known."""

_STATUSES = frozenset(HTTPStatus)
_REASONS = {
    400: "bad-request",
    401: "unauthorised",
    402: "payment-required",
    403: "forbidden",
    404: "not-found",
    405: "bad-method",
    408: "slow-body",
    413: "too-large",
    422: "bad-request",
    429: "rate-limited",
}

Ids = tuple[str, str]
"""Function id and version id as attributes: real ones, or the placeholders for all others."""
OTHERS: Ids = (OTHER, OTHER)


class Version(Protocol):
    """The parts of a function version that metrics need."""

    @property
    def id(self) -> str:
        """The version's id."""

    @property
    def function_id(self) -> str:
        """The id of its function."""


def known_status(status: int) -> int:
    """Return the status as an attribute: an unregistered status becomes its class, as 299 becomes 200."""
    return status if status in _STATUSES else status // 100 * 100


def reason_of(problem: HttpProblem | None) -> str:
    """Return why a request was refused, as an attribute."""
    if problem is None:
        return "other"
    return problem.reason or _REASONS.get(problem.status, "other")


class GatewayMetrics:
    """All metrics of a gateway. Written on the event loop, collected from any thread."""

    def __init__(self, scheme: str = "http", versions: Bounded | None = None) -> None:
        self.versions = Bounded() if versions is None else versions
        self.scheme = scheme
        self._ids: dict[str, Ids] = {}
        self._http: dict[tuple[str, str, int | str | None], Series] = {}
        self._invocations: dict[tuple[Ids, str, str], Series] = {}
        self._enqueued: dict[Ids, Series] = {}
        self._cold: dict[Ids, Series] = {}
        self.refused: Counter[tuple[str, str]] = Counter()
        self.cold_starts: Counter[Ids] = Counter()
        self.versions.on_release(self._release)

    # --- on the request path

    def http(self, method: str, route: str, status: int | None, error: BaseException | None = None) -> Series:
        """Return the durations of HTTP requests; without a status the connection ended with `error`."""
        key = (method, route, type(error).__name__ if status is None else status)
        series = self._http.get(key)
        if series is None:
            attributes: dict[str, str | int] = {
                names.HTTP_REQUEST_METHOD: method,
                names.URL_SCHEME: self.scheme,
            }
            if route:
                attributes[names.HTTP_ROUTE] = route
            if status is None:
                attributes[names.ERROR_TYPE] = str(key[2])
            else:
                attributes[names.HTTP_RESPONSE_STATUS_CODE] = known_status(status)
                if status >= 500:
                    attributes[names.ERROR_TYPE] = str(known_status(status))
            series = self._http[key] = histogram(instruments.HTTP_SERVER_REQUEST_DURATION).series(attributes)
        return series

    def ids(self, version: Version | None) -> Ids:
        """Return a version as attributes."""
        if version is None:
            return UNKNOWN, UNKNOWN
        found = self._ids.get(version.id)
        if self.versions.admits(version.id):
            if found is None:
                found = self._ids[version.id] = (version.function_id, version.id)
            return found
        return OTHERS

    def known_ids(self, version_id: str) -> Ids:
        """Return a version that was called before as attributes. Callable from any thread."""
        return self._ids.get(version_id, OTHERS)

    def invocation(self, version: Version | None, kind: str, outcome: str) -> Series:
        """Return the durations of calls."""
        key = (self.ids(version), kind, outcome)
        series = self._invocations.get(key)
        if series is None:
            attributes = {**attributes_of(key[0]), names.ROUTE: kind, names.OUTCOME: outcome}
            series = self._invocations[key] = histogram(instruments.INVOCATION_DURATION).series(attributes)
        return series

    def enqueued(self, version: Version) -> Series:
        """Return the durations of publishing requests."""
        return self._of(instruments.ENQUEUE_DURATION, self._enqueued, version)

    def cold_start(self, version: Version) -> Series:
        """Return the durations from the queue to the first response, for requests that found no instance."""
        return self._of(instruments.COLD_START_DURATION, self._cold, version)

    def _of(self, instrument: instruments.Instrument, known: dict[Ids, Series], version: Version) -> Series:
        ids = self.ids(version)
        series = known.get(ids)
        if series is None:
            series = known[ids] = histogram(instrument).series(attributes_of(ids))
        return series

    def found_no_instance(self, version: Version) -> None:
        """Count a request that was queued while no instance of its version ran."""
        self.cold_starts[self.ids(version)] += 1

    def rejected(self, kind: str, problem: HttpProblem | None) -> None:
        """Count a call that was refused before it was queued."""
        self.refused[kind, reason_of(problem)] += 1

    def _release(self, version_id: str) -> None:
        self._ids.pop(version_id, None)
        histograms = (
            instruments.INVOCATION_DURATION,
            instruments.ENQUEUE_DURATION,
            instruments.COLD_START_DURATION,
        )
        for instrument in histograms:
            histogram(instrument).forget({names.FUNCTION_VERSION_ID: version_id})
        for known in (self._enqueued, self._cold, self.cold_starts):
            for ids in [each for each in known if each[1] == version_id]:
                del known[ids]
        for key in [each for each in self._invocations if each[0][1] == version_id]:
            del self._invocations[key]


def attributes_of(ids: Ids) -> dict[str, str]:
    """Return the metric attributes of a version."""
    return {names.FUNCTION_ID: ids[0], names.FUNCTION_VERSION_ID: ids[1]}


def register_gauges(
    metrics: GatewayMetrics,
    waiting: Callable[[], Iterable[tuple[str, int]]],
    sessions: Callable[[], int],
    tunnel_bytes: Callable[[], tuple[int, int]],
) -> None:
    """Register the metrics that are read only when collected.

    `waiting` returns version ids and how many calls wait, `tunnel_bytes` the bytes to workers and to callers.
    Collection runs on the reader's thread, so only whole values are read.
    """
    meter = otel_metrics.get_meter("nvcf_gateway")

    def active(_: CallbackOptions) -> Iterable[Observation]:
        counts: Counter[Ids] = Counter()
        for version_id, count in waiting():
            counts[metrics.known_ids(version_id)] += count
        return [Observation(count, attributes_of(ids)) for ids, count in counts.items()]

    def cold_starts(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, attributes_of(ids)) for ids, count in list(metrics.cold_starts.items())]

    def refused(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(count, {names.ROUTE: kind, names.REASON: reason})
            for (kind, reason), count in list(metrics.refused.items())
        ]

    def active_sessions(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sessions())]

    def bytes_passed(_: CallbackOptions) -> Iterable[Observation]:
        to_workers, to_callers = tunnel_bytes()
        return [
            Observation(to_workers, {names.DIRECTION: "to-worker"}),
            Observation(to_callers, {names.DIRECTION: "to-caller"}),
        ]

    instruments.INVOCATION_ACTIVE.create(meter, active)
    instruments.INVOCATION_COLD_STARTS.create(meter, cold_starts)
    instruments.INVOCATION_REJECTED.create(meter, refused)
    instruments.SESSIONS_ACTIVE.create(meter, active_sessions)
    instruments.TUNNEL_BYTES.create(meter, bytes_passed)
