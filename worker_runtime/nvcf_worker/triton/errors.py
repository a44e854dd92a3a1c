"""Errors of calls to Triton, and what the caller of the function gets."""

from __future__ import annotations

from nvcf_worker.errors import BadInput, HTTPError, RetryLater, WorkerError

QUEUE_FULL_SECONDS = 0.2
"""Wait before a request is delivered again that Triton had no room for."""
_QUEUE_FULL = "maximum queue size"
_TIMED_OUT = ("timeout expired", "request timeout")


class TritonError(WorkerError):
    """Triton failed to run a request: the caller gets 500, and the text is only in the log."""


class TritonUnavailable(RetryLater):
    """Triton cannot take the request now: it goes back to the queue, and its caller waits on."""


class TritonRefused(Exception):
    """Triton's own error: a gRPC status name, such as `INVALID_ARGUMENT`, and its text."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


_OF_HTTP = {
    400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 409: "ALREADY_EXISTS", 499: "CANCELLED", 501: "UNIMPLEMENTED",
    503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip


def of_http_status(status: str | None) -> str:
    """Return the gRPC status name that belongs to the HTTP status of one of Triton's errors."""
    return _OF_HTTP.get(int(status), "INTERNAL") if status is not None and status.isdigit() else "INTERNAL"


def raised_for(refused: TritonRefused, model: str, *, own_timeout: bool = False) -> Exception:
    """Return what a call of a model raises for Triton's error.

    own_timeout: the function set the time that the request may wait in Triton, so that its end is an answer.
    """
    text = f"model {model}: {refused.text}"
    lowered = refused.text.lower()
    if any(words in lowered for words in _TIMED_OUT) or refused.status == "DEADLINE_EXCEEDED":
        if own_timeout:
            return HTTPError(504, f"model {model} did not begin with the request in time")
        return TritonUnavailable(text, after=0)
    if _QUEUE_FULL in lowered:
        return TritonUnavailable(text, after=QUEUE_FULL_SECONDS)
    match refused.status:
        case "INVALID_ARGUMENT":
            return BadInput(text)
        case "UNAVAILABLE" | "NOT_FOUND" | "CANCELLED":
            return TritonUnavailable(text)
        case _:
            return TritonError(text)
