"""Errors of Helm functions."""

from nvcf_agent.errors import AgentError


class ChartError(AgentError):
    """The chart cannot be fetched or rendered, and another try would not change that."""


class ChartUnavailable(AgentError):
    """The chart cannot be fetched or rendered now: its registry or this machine does not answer in time."""


class ChartPullError(ChartUnavailable):
    """The registry answers, but without the chart. Somebody can mend that without changing the deployment."""
