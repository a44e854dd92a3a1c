"""API keys: their text form `nvcf-KEYID-SECRET`, and what is stored of them.

KEYID is 12 hex digits, SECRET 43 base64url characters (256 bits).
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from nvcf_proto.errors import InvalidToken
from nvcf_proto.models.record import Record, Text, matching

API_KEYS_BUCKET = "nvcf_api_keys"

_KEY = re.compile(r"nvcf-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")


def new_api_key() -> str:
    """Return a new random key."""
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    return f"nvcf-{secrets.token_hex(6)}-{secret}"


def api_key_id(key: str) -> str:
    """Return the public part of a key. Raises InvalidToken when the text is no key."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise InvalidToken("not an API key")
    return match[1]


def hash_api_key(key: str) -> str:
    """Return what is stored of a key: its SHA-256 in hex. A fast hash is enough for 256 random bits."""
    return hashlib.sha256(key.encode()).hexdigest()


class Scope(StrEnum):
    """What an API key may do. ADMIN includes all the others but AGENT, SERVICE and OPERATOR.

    AGENT is for the agent of one cluster. SERVICE reaches across accounts: services (a third-party invocation
    service or rate limiter) ask on behalf of callers. OPERATOR is for who runs the installation: beside ADMIN
    it allows to register clusters that run other accounts' functions.
    """

    INVOKE = "invoke"
    LIST = "list"
    MANAGE = "manage"
    DEPLOY = "deploy"
    ADMIN = "admin"
    AGENT = "agent"
    SERVICE = "service"
    OPERATOR = "operator"


class ApiKey(Record, frozen=True):
    """An API key without its secret. Key: its id, 12 hex digits.

    `secret_hash` is the SHA-256 of the key text as 64 hex digits. From `expires_at` on the key is void. With
    `function_ids` it is good for these functions only. A revoked key keeps its record without the hash, so
    that nobody takes it for one that does not exist yet. `created_by` is the subject that made it over HTTP.
    With `cluster_id` it proves the identity of that cluster's agent.
    """

    if_given: ClassVar[frozenset[str]] = frozenset(("versions",))

    id: Annotated[str, matching(r"[0-9a-f]{12}")]
    secret_hash: Annotated[str, matching(r"[0-9a-f]{64}")]
    nca_id: Text
    scopes: tuple[Scope, ...]
    created_at: float
    description: Text | None = None
    expires_at: float | None = None
    function_ids: tuple[str, ...] = ()
    revoked_at: float | None = None
    created_by: Text | None = None
    cluster_id: Text | None = None
    versions: tuple[tuple[Text, Text], ...] = ()
    """Functions and versions: of a function that is among them, it is good for these versions only."""

    @classmethod
    def from_dict(cls, members: Any, path: str = "") -> Self:
        """Build a record; scopes of newer versions are left out. Raises InvalidRecord."""
        if isinstance(members, dict):
            scopes = [] if members.get("scopes") is None else members["scopes"]
            if isinstance(scopes, list):
                scopes = [each for each in scopes if not isinstance(each, str) or each in set(Scope)]
            members = {**members, "scopes": scopes}
        return super().from_dict(members, path)

    def allows(self, scope: Scope) -> bool:
        """Return whether the key carries `scope` itself or by being an admin key."""
        across = (Scope.AGENT, Scope.SERVICE, Scope.OPERATOR)
        return scope in self.scopes or (Scope.ADMIN in self.scopes and scope not in across)

    def covers(self, function_id: str) -> bool:
        """Return whether the key is good for this function."""
        return not self.function_ids or function_id in self.function_ids

    def covers_version(self, function_id: str, version_id: str) -> bool:
        """Return whether the key is good for this version of a function that it covers."""
        named = [version for function, version in self.versions if function == function_id]
        return not named or version_id in named

    def is_live(self, now: float) -> bool:
        """Return whether the key is neither expired nor revoked at `now` (Unix seconds)."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def revoked(self, now: float) -> Self:
        """Return the record of the same key, revoked."""
        return self.replace(revoked_at=now, secret_hash="0" * 64)
