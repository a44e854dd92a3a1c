"""Errors of the contract package."""

from __future__ import annotations


class ContractError(ValueError):
    """Something received or given does not follow the wire contract."""


class InvalidId(ContractError):
    """A text that should be a UUID is none."""


class H1Error(ContractError):
    """A body of type `application/octet-stream+h1` is malformed or exceeds a limit."""


class InvalidToken(ContractError):
    """A token does not have the expected form."""


class InvalidRecord(ContractError):
    """A stored record or a request body lacks a field or has one of the wrong type.

    `field` is the path of the offending field, e.g. `deploymentSpecifications[0].minInstances`.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason
