"""Whether a worker may still act: its token, its instance and its deployment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nvcf_gateway.access.worker_tokens import InvalidWorkerToken, WorkerTokens
from nvcf_gateway.registry import Registry
from nvcf_proto.icms.messages import instance_id_of
from nvcf_proto.models import Deployment, FunctionVersion, Instance, InstanceState
from nvcf_proto.tokens import WorkerClaims

_OVER = frozenset({InstanceState.COMPLETED, InstanceState.FAILED})
NOT_DEPLOYED = "its version is not deployed"
DELETED = "its version was deleted"
PUBLISHES_TOO_MUCH = "the workers of its account publish more than the account's quota"
# Times in tokens are whole seconds, and the clocks of two gateways differ a little.
_CLOCK_SECONDS = 2.0


def why_revoked(
    claims: WorkerClaims,
    version: object | None,
    deployment: Deployment | None,
    instance: Instance | None,
    *,
    deleted: bool,
) -> str | None:
    """Return why a token that has not expired is void; None if it is good. Pure.

    An instance that is being ended keeps its token, because it has to finish what it holds. `deleted`: its
    record was. One that is merely missing may have been lost, and the instance still serves.
    """
    if instance is not None:
        return "its instance has ended" if instance.state in _OVER else None
    if version is None:
        return DELETED
    if claims.has_record and deleted:
        return "its instance is gone"
    if deployment is None:
        return NOT_DEPLOYED
    if claims.issued_at + _CLOCK_SECONDS < deployment.created_at:
        return "it is of an earlier deployment"
    return None


class RevokedWorkerToken(InvalidWorkerToken):
    """A worker token that was valid once, or will be."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the worker token is void: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class WorkerAccess:
    """Issues worker tokens and checks them against what runs."""

    tokens: WorkerTokens
    registry: Registry
    _shut_out: dict[str, float] = field(default_factory=dict)

    def shut_out(self, instance_id: str, seconds: float) -> None:
        """Let an instance not connect to the broker for some time."""
        now = time.monotonic()
        for old in [each for each, until in self._shut_out.items() if until <= now]:
            del self._shut_out[old]
        self._shut_out[instance_id] = now + seconds

    def may_connect(self, claims: WorkerClaims) -> bool:
        """Return whether an instance may connect to the broker now."""
        return self._shut_out.get(claims.instance_id, 0.0) <= time.monotonic()

    def first_token(self, version: FunctionVersion, request_id: str, now: float) -> str:
        """Return the token that travels in the creation message of an order."""
        token, _ = self.tokens.issue(
            function_id=version.function_id,
            version_id=version.id,
            instance_id=instance_id_of(request_id),
            nca_id=version.nca_id,
            now=now,
            has_record=True,
            request_id=request_id,
            first=True,
        )
        return token

    def first_secrets_token(
        self, version: FunctionVersion, request_id: str, paths: Sequence[str], now: float
    ) -> str:
        """Return the token of an order's creation message that reads the secrets at `paths`."""
        claims = WorkerClaims(
            instance_id_of(request_id),
            version.function_id,
            version.id,
            version.nca_id,
            expires_at=0.0,
            has_record=True,
            request_id=request_id,
        )
        return self.tokens.for_secrets(claims, paths, now)[0]

    def renewed(self, claims: WorkerClaims, instance_id: str, now: float) -> tuple[str, float]:
        """Return a new token, which is for that instance only, and when it expires."""
        return self.tokens.issue(
            function_id=claims.function_id,
            version_id=claims.version_id,
            instance_id=instance_id,
            nca_id=claims.nca_id,
            now=now,
            has_record=self._instance(claims) is not None,
            request_id=claims.request_id,
        )

    def issue_for_secrets(self, claims: WorkerClaims, paths: Sequence[str], now: float) -> tuple[str, float]:
        """Return a token that reads the secrets at `paths` while the instance lives, and its end."""
        recorded = self._instance(claims) is not None
        return self.tokens.for_secrets(replace(claims, has_record=recorded), paths, now)

    def verify(self, token: str, now: float) -> WorkerClaims:
        """Return the claims of a good token. Raises InvalidWorkerToken and RevokedWorkerToken."""
        claims = self.tokens.verify(token, now)
        reason = self.why_revoked(claims)
        if reason is not None:
            raise RevokedWorkerToken(reason)
        return claims

    def verify_for_secrets(self, token: str, now: float) -> tuple[str, ...]:
        """Return the paths that a token for secrets reads. Raises as `verify` does."""
        claims, paths = self.tokens.verify_for_secrets(token, now)
        reason = self.why_revoked(claims)
        if reason is not None:
            raise RevokedWorkerToken(reason)
        return paths

    def why_revoked(self, claims: WorkerClaims) -> str | None:
        """Return why these claims are void now; None if they are good."""
        version = self.registry.versions.get(claims.version_id)
        deployment = self.registry.deployments.get(claims.version_id)
        instance = self._instance(claims)
        deleted = not claims.request_id or self.registry.instances.is_deleted(_key(claims))
        return why_revoked(claims, version, deployment, instance, deleted=deleted)

    def _instance(self, claims: WorkerClaims) -> Instance | None:
        if claims.request_id:
            return self.registry.instances.get(_key(claims))
        return self.registry.index.instance(claims.version_id, claims.instance_id)


def _key(claims: WorkerClaims) -> str:
    return f"{claims.version_id}.{claims.request_id}"
