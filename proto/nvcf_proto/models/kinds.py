"""Closed sets of words in records."""

from __future__ import annotations

from enum import StrEnum


class FunctionType(StrEnum):
    """How callers use a version."""

    DEFAULT = "DEFAULT"
    STREAMING = "STREAMING"
    LLM = "LLM"


class VersionStatus(StrEnum):
    """Life of a version, as the management API shows it."""

    INACTIVE = "INACTIVE"
    DEPLOYING = "DEPLOYING"
    ACTIVE = "ACTIVE"
    ERROR = "ERROR"
    DELETING = "DELETING"


class InstanceState(StrEnum):
    """Life of an instance."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    TERMINATING = "TERMINATING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class Scope(StrEnum):
    """What an API key may do. ADMIN includes all the others but AGENT and SERVICE.

    AGENT and SERVICE reach across accounts: agents fetch worker tokens, services (an invocation service or a
    rate limiter of another make) ask on behalf of callers.
    """

    INVOKE = "invoke"
    LIST = "list"
    MANAGE = "manage"
    DEPLOY = "deploy"
    ADMIN = "admin"
    AGENT = "agent"
    SERVICE = "service"
