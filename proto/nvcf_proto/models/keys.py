"""API keys, without their secrets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from nvcf_proto.models.base import Record
from nvcf_proto.models.kinds import Scope
from nvcf_proto.records import Fields

API_KEYS_BUCKET = "nvcf_api_keys"


@dataclass(frozen=True)
class ApiKey(Record):
    """An API key without its secret. Key: its id, 12 hex digits.

    `secret_hash` is the SHA-256 of the key text as 64 hex digits. From `expires_at` on the key is void. With
    `function_ids` it is good for these functions only. A revoked key keeps its record, so that nobody
    takes it for one that is still to be made; its hash is gone.
    """

    id: str
    secret_hash: str
    nca_id: str
    scopes: tuple[Scope, ...]
    created_at: float
    description: str | None = None
    expires_at: float | None = None
    function_ids: tuple[str, ...] = ()
    revoked_at: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "secretHash": self.secret_hash,
            "ncaId": self.nca_id,
            "scopes": [scope.value for scope in self.scopes],
            "createdAt": self.created_at,
            "description": self.description,
            "expiresAt": self.expires_at,
            "functionIds": list(self.function_ids),
            "revokedAt": self.revoked_at,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            id=fields.text("id", pattern=r"[0-9a-f]{12}"),
            secret_hash=fields.text("secretHash", pattern=r"[0-9a-f]{64}"),
            nca_id=fields.text("ncaId"),
            scopes=tuple(Scope(text) for text in fields.texts("scopes") if text in set(Scope)),
            created_at=fields.number("createdAt"),
            description=fields.optional_text("description"),
            expires_at=fields.number("expiresAt") if fields.has("expiresAt") else None,
            function_ids=fields.texts("functionIds"),
            revoked_at=fields.number("revokedAt") if fields.has("revokedAt") else None,
        )

    def allows(self, scope: Scope) -> bool:
        """Whether the key carries `scope` itself or by being an admin key."""
        across = (Scope.AGENT, Scope.SERVICE)
        return scope in self.scopes or (Scope.ADMIN in self.scopes and scope not in across)

    def covers(self, function_id: str) -> bool:
        """Whether the key is good for this function."""
        return not self.function_ids or function_id in self.function_ids

    def is_live(self, now: float) -> bool:
        """Whether the key is neither expired nor revoked at `now` (Unix seconds)."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def revoked(self, now: float) -> Self:
        """The record of the same key, revoked."""
        return replace(self, revoked_at=now, secret_hash="0" * 64)
