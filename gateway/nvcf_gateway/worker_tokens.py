"""Worker tokens: EdDSA (Ed25519) JWTs scoped to one function, version and instance."""

from __future__ import annotations

import os
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nvcf_gateway.errors import GatewayError, SetupError
from nvcf_proto.settings import WORKER_TOKEN_LIFE
from nvcf_proto.tokens import WORKER_TOKEN_AUDIENCE, WORKER_TOKEN_ISSUER, WorkerClaims

ALGORITHM = "EdDSA"
_CLAIMS = ("iss", "aud", "sub", "fn", "ver", "nca", "iat", "exp")


class InvalidWorkerToken(GatewayError):
    """A worker token is forged, expired or no worker token at all."""


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read the installation's key, making it (mode 0600) when the file is missing. Raises SetupError."""
    try:
        return _read_key(path)
    except FileNotFoundError:
        pass
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        # Whoever creates the file first has made the key for all replicas that share the folder.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_key(path)
    except OSError as error:
        raise SetupError(f"cannot create the signing key {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    return _read_key(path)


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise SetupError(
            f"cannot read the signing key {path}: a PEM file with an Ed25519 key expected"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"the signing key {path} is no Ed25519 key")
    return key


class WorkerTokens:
    """Signs and checks worker tokens. Times are Unix seconds and passed in."""

    def __init__(self, key: Ed25519PrivateKey, life: float = WORKER_TOKEN_LIFE) -> None:
        self._key = key
        self._public = key.public_key()
        self._life = life

    def issue(
        self, *, function_id: str, version_id: str, instance_id: str, nca_id: str, now: float
    ) -> tuple[str, float]:
        """A new token and when it expires."""
        expires = int(now + self._life)
        claims = {
            "iss": WORKER_TOKEN_ISSUER,
            "aud": WORKER_TOKEN_AUDIENCE,
            "sub": instance_id,
            "fn": function_id,
            "ver": version_id,
            "nca": nca_id,
            "iat": int(now),
            "exp": expires,
        }
        return jwt.encode(claims, self._key, algorithm=ALGORITHM), float(expires)

    def verify(self, token: str, now: float) -> WorkerClaims:
        """What a genuine, live token says. Raises InvalidWorkerToken."""
        try:
            claims = jwt.decode(
                token,
                self._public,
                algorithms=[ALGORITHM],
                audience=WORKER_TOKEN_AUDIENCE,
                issuer=WORKER_TOKEN_ISSUER,
                options={"require": list(_CLAIMS), "verify_exp": False, "verify_iat": False},
            )
            found = WorkerClaims(
                instance_id=str(claims["sub"]),
                function_id=str(claims["fn"]),
                version_id=str(claims["ver"]),
                nca_id=str(claims["nca"]),
                expires_at=float(claims["exp"]),
            )
        except (jwt.InvalidTokenError, TypeError, ValueError) as error:
            raise InvalidWorkerToken("not a valid worker token") from error
        if found.expires_at <= now:
            raise InvalidWorkerToken("the worker token has expired")
        return found
