"""Worker tokens: EdDSA (Ed25519) JWTs for one function, version and instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jwt

from nvcf_gateway.access.signing_keys import SigningKeys
from nvcf_gateway.errors import GatewayError
from nvcf_proto.secrets import SECRETS_AUDIENCE, SECRETS_TOKEN_LIFE
from nvcf_proto.settings import WORKER_TOKEN_LIFE
from nvcf_proto.tokens import WORKER_TOKEN_AUDIENCE, WORKER_TOKEN_ISSUER, WorkerClaims

ALGORITHM = "EdDSA"
_CLAIMS = ("iss", "aud", "sub", "fn", "ver", "nca", "iat", "exp")


class InvalidWorkerToken(GatewayError):
    """A worker token is forged or expired, or the text is not a worker token."""


class WorkerTokens:
    """Signs and checks worker tokens. Times are Unix seconds and passed in.

    The keys may change at any time: the newest one signs, all of them verify. A token
    names its key (`kid`); older tokens name none and are tried with all keys.
    """

    def __init__(self, keys: SigningKeys, life: float = WORKER_TOKEN_LIFE) -> None:
        self._keys = keys
        self._life = life

    def issue(
        self,
        *,
        function_id: str,
        version_id: str,
        instance_id: str,
        nca_id: str,
        now: float,
        has_record: bool = False,
        request_id: str = "",
        first: bool = False,
        audience: str = WORKER_TOKEN_AUDIENCE,
    ) -> tuple[str, float]:
        """Return a new token and when it expires."""
        claims = WorkerClaims(
            instance_id,
            function_id,
            version_id,
            nca_id,
            now + self._life,
            has_record=has_record,
            request_id=request_id,
            first=first,
        )
        return self._sign(claims, audience, now)

    def assertion(self, worker: WorkerClaims, purpose: str, now: float) -> tuple[str, float]:
        """Return a token by which a worker proves its identity to third parties, and when it expires.

        `purpose` becomes the audience, so that the token is good for nothing else.
        """
        return self._sign(replace(worker, expires_at=now + self._life), purpose, now)

    def for_secrets(self, worker: WorkerClaims, paths: Sequence[str], now: float) -> tuple[str, float]:
        """Return a token that reads the secrets at `paths` and nothing else, and when it expires."""
        claims = replace(worker, expires_at=now + SECRETS_TOKEN_LIFE)
        return self._sign(claims, SECRETS_AUDIENCE, now, {"assertion": {"secretPaths": list(paths)}})

    def _sign(
        self, worker: WorkerClaims, audience: str, now: float, more: Mapping[str, Any] | None = None
    ) -> tuple[str, float]:
        expires = int(worker.expires_at)
        claims: dict[str, Any] = {
            "iss": WORKER_TOKEN_ISSUER,
            "aud": audience,
            "sub": worker.instance_id,
            "fn": worker.function_id,
            "ver": worker.version_id,
            "nca": worker.nca_id,
            "iat": int(now),
            "exp": expires,
        }
        if worker.has_record:
            claims["rec"] = True
        if worker.request_id:
            claims["req"] = worker.request_id
        if worker.first:
            claims["first"] = True
        claims.update(more or {})
        signer = self._keys.ring.signer
        token = jwt.encode(claims, signer.private, algorithm=ALGORITHM, headers={"kid": signer.key_id})
        return token, float(expires)

    def verify(self, token: str, now: float, audience: str = WORKER_TOKEN_AUDIENCE) -> WorkerClaims:
        """Return the claims of a valid token. Raises InvalidWorkerToken."""
        return self._verified(token, audience, now)[0]

    def verify_for_secrets(self, token: str, now: float) -> tuple[WorkerClaims, tuple[str, ...]]:
        """Return the claims of a valid token for secrets, and its paths. Raises InvalidWorkerToken."""
        worker, claims = self._verified(token, SECRETS_AUDIENCE, now)
        assertion = claims.get("assertion")
        paths = assertion.get("secretPaths") if isinstance(assertion, dict) else None
        return worker, tuple(map(str, paths)) if isinstance(paths, list) else ()

    def _verified(self, token: str, audience: str, now: float) -> tuple[WorkerClaims, dict[str, Any]]:
        try:
            claims = self._decode(token, audience)
            found = WorkerClaims(
                instance_id=str(claims["sub"]),
                function_id=str(claims["fn"]),
                version_id=str(claims["ver"]),
                nca_id=str(claims["nca"]),
                expires_at=float(claims["exp"]),
                issued_at=float(claims["iat"]),
                has_record=claims.get("rec") is True,
                request_id=str(claims.get("req", "")),
                first=claims.get("first") is True,
            )
        except (jwt.InvalidTokenError, TypeError, ValueError) as error:
            raise InvalidWorkerToken("not a valid worker token") from error
        if found.expires_at <= now:
            raise InvalidWorkerToken("the worker token has expired")
        return found, claims

    def _decode(self, token: str, audience: str) -> dict[str, Any]:
        key_id = jwt.get_unverified_header(token).get("kid")
        candidates = self._keys.ring.candidates(key_id)
        if not candidates:
            # Another replica may have signed it with a key that has just been added.
            self._keys.refresh_if_due()
            candidates = self._keys.ring.candidates(key_id)
        error: jwt.InvalidTokenError = jwt.InvalidTokenError("signed with an unknown key")
        for key in candidates:
            try:
                decoded: dict[str, Any] = jwt.decode(
                    token,
                    key.public,
                    algorithms=[ALGORITHM],
                    audience=audience,
                    issuer=WORKER_TOKEN_ISSUER,
                    options={"require": list(_CLAIMS), "verify_exp": False, "verify_iat": False},
                )
            except jwt.InvalidTokenError as failed:
                error = failed
            else:
                return decoded
        raise error
