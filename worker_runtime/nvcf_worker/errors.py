"""Errors of the worker runtime."""

from __future__ import annotations

from collections.abc import Mapping


class WorkerError(Exception):
    """Base class of the package's errors. If one ends the worker, it has the exit code and the category."""

    exit_code = 1
    category = "startup"


class ConfigurationError(WorkerError):
    """The environment or an argument is unusable; exit code 2. The text says what to change."""

    exit_code = 2
    category = "configuration"


class StartupError(WorkerError):
    """The worker could not start, e.g. the platform refused its token; exit code 1."""


class NotReady(WorkerError):
    """The function's server or application did not become ready; exit code 4."""

    exit_code = 4
    category = "not-ready"


class ServerEnded(WorkerError):
    """The function's own server process ended; exit code 5."""

    exit_code = 5
    category = "server-ended"


class HandlerError(WorkerError, TypeError):
    """The handler given to `serve` is unusable."""


class BatchError(WorkerError):
    """A batch function broke its contract, e.g. it returned fewer results than it got items."""


class ChannelError(WorkerError):
    """A message between the worker and a child process cannot be read."""


class HandlerFailed(WorkerError):
    """A handler in a child process raised an error. The text has its type, the cause its traceback."""


class ControlError(WorkerError):
    """A call to the WorkerService failed.

    permanent: repeating the call cannot help. forbidden: the worker is known but has no permission, which may
    change while a version starts up.
    """

    def __init__(self, text: str, *, permanent: bool, forbidden: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent
        self.forbidden = forbidden


class RunOver(ControlError):
    """The platform says that this run of the task has to end: it is over, or another one was ordered."""


class MalformedWork(WorkerError):
    """A queue message is not a request that this worker can run."""


class JournalError(WorkerError):
    """The in-flight journal cannot be used."""


class TunnelError(WorkerError):
    """A session's link to the gateway could not be opened. final: trying again cannot help."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


class DeliveryError(WorkerError):
    """A response could not be delivered."""


class CallerGone(DeliveryError):
    """The gateway says that the request is over."""


class UnknownToken(CallerGone):
    """The gateway does not know the request's token: the request is over, or the gateway has restarted."""


class Abandoned(CallerGone):
    """A response that nobody has taken, and that nobody can want any more."""


class GatewayGone(DeliveryError):
    """The gateway cannot be reached; nothing of the response has been used up."""


class StreamLost(DeliveryError):
    """The connection broke while a response was streamed, so that it cannot be sent again."""

    def __init__(self, text: str, *, wanted_again: bool = False) -> None:
        super().__init__(text)
        self.wanted_again = wanted_again
        """Whether somebody may still ask for the response."""


class Undeliverable(DeliveryError):
    """No gateway was found in time; the queue delivers the request again."""


class InstanceBroken(WorkerError):
    """The instance is broken and leaves, so that it is replaced; exit code 3."""

    exit_code = 3
    category = "fatal"


class Unhealthy(InstanceBroken):
    """The instance serves no more: its health hook says so, or its slots do not come back; exit code 3."""

    category = "unhealthy"


class RequestCancelled(WorkerError):
    """Raised by a blocking read in a handler whose request was cancelled."""


class FunctionError(WorkerError):
    """An error response, raised by a handler; its text goes to the caller.

    `status` is the HTTP status, `title` the problem document's title (protocol.md, section 3.5).
    """

    status = 500
    title = "Internal Server Error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers: list[tuple[str, str]] = []
        self.extra: dict[str, object] = {}


class HTTPError(FunctionError):
    """An error response of any status from 400 to 599: `raise HTTPError(429, "one call at a time")`.

    headers: sent with the response, e.g. Retry-After. Raises TypeError or ValueError for another status.
    """

    def __init__(self, status: int, detail: str = "", *, headers: Mapping[str, object] | None = None) -> None:
        if not isinstance(status, int):
            raise TypeError(f"status is {status!r}; it must be an integer")
        if not 400 <= status <= 599:
            raise ValueError(f"status is {status}; an error has 400 to 599")
        # Here, because `serve` must import little before it checks its arguments.
        from nvcf_proto.problem import reason_phrase

        super().__init__(str(detail))
        self.status = int(status)
        self.title = reason_phrase(self.status)
        self.headers = [(str(name), str(value)) for name, value in (headers or {}).items()]


class BadInput(FunctionError):
    """The request is wrong: a 400 response."""

    status = 400
    title = "Bad Request"


class BodyUnavailable(FunctionError):
    """The rest of the request's body could not be fetched from the gateway."""

    status = 502
    title = "Request Body Unavailable"
    unknown_token = False
    """Whether the gateway refused the token: it was used, or another process listens there now."""


class NotFound(FunctionError):
    """There is nothing under this name: a 404 response."""

    status = 404
    title = "Not Found"


class MethodNotAllowed(FunctionError):
    """The path does not serve this method: a 405 response with the header Allow."""

    status = 405
    title = "Method Not Allowed"

    def __init__(self, detail: str, allowed: list[str]) -> None:
        super().__init__(detail)
        self.headers = [("allow", ", ".join(allowed))]


class InvalidInput(FunctionError):
    """Parameters do not fit their types: a 422 response.

    `errors` are pairs of a field (`items.0.price`, empty for the body itself) and what is wrong with it.
    """

    status = 422
    title = "Unprocessable Content"

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        text = "; ".join(f"{field}: {message}" if field else message for field, message in errors[:5])
        super().__init__(text if len(errors) <= 5 else f"{text}; and {len(errors) - 5} more")
        self.errors = errors
        self.extra = {"errors": [{"field": field, "message": message} for field, message in errors]}


class ProcessDied(FunctionError):
    """The child process that ran the request died, e.g. by a fault in native code or for lack of memory."""

    title = "Function Process Died"


class AssetUnavailable(FunctionError):
    """An input asset could not be fetched."""

    status = 502
    title = "Input Asset Unavailable"


class ResultNotDelivered(FunctionError):
    """A large result could not be stored."""

    title = "Large Result Not Delivered"


class RetryLater(WorkerError):
    """The request goes back to the queue and to another worker, while its caller waits on.

    after: seconds until it is delivered again. The queue counts this as an attempt; at the last one the
    caller gets 503 with Retry-After.
    """

    def __init__(self, reason: str = "the function asked for another try", *, after: float = 1.0) -> None:
        if not 0 <= after <= 86_400:
            raise ValueError(f"after is {after}; it must be 0 to 86400 seconds")
        super().__init__(reason)
        self.after = after


class ServerUnreachable(RetryLater):
    """The function's own server cannot be reached, or its connection broke before a response began.

    At the last attempt the caller gets 502.
    """


class Fatal(WorkerError):
    """This instance is broken, e.g. its GPU is gone.

    The request goes to another worker. This worker takes no more requests, finishes those in flight and
    exits with code 3, so that the instance is replaced. The text is the exit reason.
    """


def first_error(group: BaseExceptionGroup[WorkerError]) -> WorkerError:
    """Return the first of several errors that happened at once: one reason is enough to act on."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, WorkerError) else WorkerError(str(error))
