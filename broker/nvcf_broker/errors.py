"""Errors of the broker package. Every message names the way out where there is one."""

from collections.abc import Mapping
from typing import Any

STREAM_NAME_IN_USE = 10058
INSUFFICIENT_STORAGE = 10047
ACCOUNT_FULL = 10002
WRONG_LAST_SEQUENCE = (10071, 10164)


class BrokerError(Exception):
    """Base class of this package's errors. The text is one line, ready for a terminal."""


class BrokerMissingError(BrokerError):
    """The nats-server binary is not installed."""


class BrokerUnavailableError(BrokerError):
    """The broker cannot be started, reached or used."""


class BrokerRefusedError(BrokerError):
    """The broker does not accept the credentials."""


class NoListenerError(BrokerUnavailableError):
    """Nobody listens on the subject: its stream is missing, or JetStream is not ready."""


class JetStreamError(BrokerError):
    """JetStream refuses a call.

    `code` is the status as in HTTP, `err_code` is JetStream's own number (nats-server, server/errors.json).
    """

    def __init__(self, action: str, error: Mapping[str, Any]) -> None:
        self.code = int(error.get("code", 500))
        self.err_code = int(error.get("err_code", 0))
        self.description = str(error.get("description", error))
        super().__init__(f"{action}: {self.description}")

    @property
    def exists(self) -> bool:
        """Return whether a stream of that name exists already."""
        return self.err_code == STREAM_NAME_IN_USE

    @property
    def no_room(self) -> bool:
        """Return whether the bounds of a new stream do not fit the limit of its account or server."""
        return self.err_code == INSUFFICIENT_STORAGE

    @property
    def account_full(self) -> bool:
        """Return whether the account stores as much as it may."""
        return self.err_code == ACCOUNT_FULL

    @property
    def conflict(self) -> bool:
        """Return whether the subject's last sequence is not the expected one."""
        return self.err_code in WRONG_LAST_SEQUENCE


class KeyExistsError(BrokerError):
    """The key of a record to be created exists already."""


class RevisionConflictError(BrokerError):
    """Another process changed the record since it was read: read it again and decide anew."""


class ProcessError(BrokerError):
    """A child process cannot be started."""
