"""Bodies of requests to the management API. OpenAPI's schemas are generated from these records."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta, field
from msgspec.structs import force_setattr

from nvcf_gateway.management.deployment_bodies import check_scaling
from nvcf_gateway.management.secret_bodies import TelemetrySecretValue
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import (
    MAX_ACCOUNTS_IN_LIST,
    DeploymentSpecification,
    RateLimit,
    ScalingPreferences,
    Scope,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetrySettings,
)
from nvcf_proto.models.deployments import BodyBytes, ExecutionSeconds, QueueDepth
from nvcf_proto.models.functions import Account
from nvcf_proto.models.record import Id, Record
from nvcf_proto.models.telemetries import Address, TelemetryName, TelemetryTypes

MAX_FUNCTIONS = 256

Description = Annotated[str, Meta(max_length=1024)]


class DeploymentCreation(Record, frozen=True, forbid_unknown_fields=True):
    """What instances a version shall have."""

    specifications: Annotated[tuple[DeploymentSpecification, ...], Meta(min_length=1)] = field(
        name="deploymentSpecifications"
    )
    keep_queued: bool = True
    max_queue_depth: QueueDepth | None = None
    max_body_bytes: BodyBytes | None = None
    max_execution_seconds: ExecutionSeconds | None = None
    scaling: ScalingPreferences | None = None

    def __post_init__(self) -> None:
        check_scaling(self.specifications, self.scaling)


class KeyCreation(Record, frozen=True, forbid_unknown_fields=True):
    """What a new API key shall be good for."""

    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    description: Description | None = None
    function_ids: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=MAX_FUNCTIONS)] | None = None
    expires_at: (
        Annotated[
            str,
            Meta(max_length=64, description="In the future.", extra_json_schema={"format": "date-time"}),
        ]
        | None
    ) = None
    nca_id: (
        Annotated[Account, Meta(description="Another account than the caller's: scope service.")] | None
    ) = None

    def __post_init__(self) -> None:
        self.expiry()
        force_setattr(self, "scopes", tuple(dict.fromkeys(self.scopes)))
        force_setattr(self, "function_ids", tuple(dict.fromkeys(self.function_ids or ())))

    def expiry(self) -> float | None:
        """Return the end of the key's life in Unix seconds. Raises InvalidRecord."""
        if self.expires_at is None:
            return None
        try:
            moment = datetime.fromisoformat(self.expires_at)
            if moment.tzinfo is None:
                raise ValueError("no offset")
            return moment.astimezone(UTC).timestamp()
        except (ValueError, OverflowError):
            raise InvalidRecord("expiresAt", "expected a time like 2030-01-31T12:00:00Z") from None


class Party(Record, frozen=True, forbid_unknown_fields=True):
    """An account that a function is shared with."""

    nca_id: Account


class Authorizations(Record, frozen=True, forbid_unknown_fields=True):
    """The accounts that may invoke a function besides its own."""

    authorized_parties: Annotated[tuple[Party, ...], Meta(max_length=MAX_ACCOUNTS_IN_LIST)]


class PartyChange(Record, frozen=True, forbid_unknown_fields=True):
    """The account that a function is, or no longer is, shared with."""

    authorized_party: Party


class RateLimitPolicy(RateLimit, frozen=True, forbid_unknown_fields=True):
    """A version's rate limits, without fields that nobody knows."""


class TelemetryChange(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of a telemetry endpoint but its name."""

    endpoint: Address
    protocol: TelemetryProtocol
    provider: TelemetryProvider
    types: TelemetryTypes
    secret: TelemetrySecretValue | None = None
    settings: TelemetrySettings = field(name="configuration", default=TelemetrySettings())


class TelemetryCreation(TelemetryChange, frozen=True, kw_only=True):
    """A new telemetry endpoint. Without a name it takes that of its secret."""

    name: TelemetryName | None = None

    def __post_init__(self) -> None:
        if self.name is None and self.secret is None:
            raise InvalidRecord("name", "missing; expected a string")
