"""Errors of the broker package. Every message names the way out where there is one."""


class BrokerError(Exception):
    """Root of this package's errors; its text is one line and fit for a terminal."""


class BrokerMissingError(BrokerError):
    """The nats-server binary is not installed."""


class BrokerUnavailableError(BrokerError):
    """The broker cannot be started, reached or used."""


class BrokerRefusedError(BrokerError):
    """The broker is there and does not accept the credentials."""


class KeyExistsError(BrokerError):
    """A record was to be created whose key is taken."""


class RevisionConflictError(BrokerError):
    """A record was changed by somebody else since it was read: read again and decide anew."""


class ProcessError(BrokerError):
    """A child process cannot be started."""
