"""Errors of the gateway."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import BucketFullError
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.problem import Problem, problem_for


class GatewayError(Exception):
    """Root of this package's errors."""


class SetupError(GatewayError):
    """The gateway cannot start; the text is one line that names the way out."""


class HttpProblem(GatewayError):
    """A response that becomes `application/problem+json`.

    `headers` are added to the response, `members` to the document. `reason` is the metric attribute, if the
    status alone does not name it.
    """

    reason: str | None = None

    def __init__(
        self,
        status: int,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail or str(status))
        base = problem_for(status, detail)
        self.problem = Problem(base.title, base.status, base.detail, base.source, members)
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.problem.status


class NoRoom(HttpProblem):
    """429: the queue of the version is full."""

    reason = "queue-full"

    def __init__(self, detail: str) -> None:
        super().__init__(429, detail, headers={"Retry-After": "1"})


class StoreUnavailable(HttpProblem):
    """503: the broker cannot store what the call needs; the text says why."""

    reason = "store-unavailable"

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(503, detail, headers={"Retry-After": str(retry_after)})


class NotEnqueued(StoreUnavailable):
    """503: the request could not be put into the queue, and is certainly not in it."""


@contextlib.contextmanager
def broker_errors() -> Iterator[None]:
    """Turn errors of the broker into HttpProblem 503, and a full bucket into 507."""
    try:
        yield
    except BucketFullError as error:
        raise HttpProblem(507, str(error)) from None
    except BrokerError as error:
        raise StoreUnavailable(str(error)) from None


def invalid_field(error: InvalidRecord) -> HttpProblem:
    """Return a 400 that names the offending field in its member `field`."""
    return HttpProblem(400, str(error), field=error.field)


class CallerGone(GatewayError):
    """The caller left before the response was complete."""


class AnsweredElsewhere(CallerGone):
    """Another execution of the request has answered first, and the caller must get that response."""


class WorkerGone(GatewayError):
    """The worker left in the middle of its response."""


class NotStored(BrokerError):
    """The broker has refused a request: it is certainly not in the queue."""


class QueueFull(NotStored):
    """The queue of a version holds as many requests as it may."""
