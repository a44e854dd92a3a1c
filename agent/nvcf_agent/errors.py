"""Errors of the agent. Every text is one line for the user."""


class AgentError(Exception):
    """Root of this package's errors."""


class StoreError(AgentError):
    """The agent's state cannot be stored or read."""


class IdentityError(AgentError):
    """The file with the agent's key or token cannot be used."""


class ControlPlaneError(AgentError):
    """The control plane did not answer a call with 200."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        """HTTP status of the answer; None when there was no answer."""


class StartError(AgentError):
    """An instance could not start for a reason outside the function. It is tried again."""


class LaunchError(AgentError):
    """An instance's own settings (interpreter, folder) do not start: a failure of the function."""


class Refused(AgentError):
    """This cluster will not run the instance, now or later."""


class NoCapacity(Refused):
    """The cluster has no room for the instance now."""


class NotAllowed(Refused):
    """The function names an interpreter or a folder that the agent does not allow."""


class Unsupported(Refused):
    """The cluster has no such instance type, or its backend cannot run this kind of function."""
