"""Errors of the worker runtime."""

from __future__ import annotations


class WorkerError(Exception):
    """Root of the package's errors."""


class ConfigurationError(WorkerError):
    """The environment or an argument is unusable. The text says what to change; exit code 2."""


class StartupError(WorkerError):
    """The worker could not get to work, e.g. the platform refused its token; exit code 1."""


class HandlerError(WorkerError, TypeError):
    """What was given to `serve` cannot serve requests."""


class ControlError(WorkerError):
    """A call to the WorkerService failed. `permanent` means that repeating it cannot help."""

    def __init__(self, text: str, *, permanent: bool) -> None:
        super().__init__(text)
        self.permanent = permanent


class MalformedWork(WorkerError):
    """A queue message is no request that this worker can run."""


class JournalError(WorkerError):
    """The in-flight journal cannot be used."""


class DeliveryError(WorkerError):
    """A response could not be delivered and nobody waits for it any more."""


class CallerGone(DeliveryError):
    """The gateway says that the request is over."""


class RequestCancelled(WorkerError):
    """Raised by a blocking read in a handler whose request was cancelled."""


class FunctionError(WorkerError):
    """An answer other than success, raised by a handler; its text goes to the caller.

    `status` is the HTTP status, `title` the problem document's title (protocol.md section 3).
    """

    status = 500
    title = "Internal Server Error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadInput(FunctionError):
    """The request is at fault: answered with 400."""

    status = 400
    title = "Bad Request"


class BodyUnavailable(FunctionError):
    """The rest of the request's body could not be fetched from the gateway."""

    status = 502
    title = "Request Body Unavailable"
