"""Errors of calls to the Kubernetes API server."""

from http import HTTPStatus

from nvcf_agent.errors import AgentError


class ApiError(AgentError):
    """A call failed. `status` is the HTTP status; 0 if there was no answer, so its outcome is unknown."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{message} ({reason})" if reason and reason not in message else message)
        self.status = status
        self.reason = reason

    @property
    def is_missing(self) -> bool:
        """Whether there is no such object."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def is_conflict(self) -> bool:
        """Whether the object exists already, or has been changed in between."""
        return self.status == HTTPStatus.CONFLICT

    @property
    def is_final(self) -> bool:
        """Whether the same call would fail again: the API server refuses the object."""
        return self.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY)
