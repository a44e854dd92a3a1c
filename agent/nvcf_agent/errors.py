"""Errors of the agent. Every text is one line that can be shown to the user as it is."""


class AgentError(Exception):
    """Root of this package's errors."""


class StartError(AgentError):
    """An instance could not be started; it will be tried again."""


class NoCapacity(StartError):
    """The cluster has no room for one more instance."""


class TokenError(StartError):
    """The gateway gave no worker token for an instance."""
