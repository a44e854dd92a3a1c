"""A cluster's signer of projected service account tokens, as a Kubernetes API server signs them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

ISSUER = "https://kubernetes.default.svc.cluster.local"
SUBJECT = "system:serviceaccount:nvca-system:nvca"


def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@dataclass
class ServiceAccount:
    """One cluster's signer. All clusters have the same issuer and subject."""

    key_id: str = "key-1"
    key: rsa.RSAPrivateKey = field(default_factory=_key)

    @property
    def jwks(self) -> str:
        """The key set as text."""
        public = json.loads(RSAAlgorithm.to_jwk(self.key.public_key()))
        return json.dumps({"keys": [{**public, "kid": self.key_id, "use": "sig", "alg": "RS256"}]})

    def token(self, cluster_id: str, *, life: float = 3600.0, **changes: Any) -> str:
        """Return a token for ICMS in the name of a cluster."""
        now = int(time.time())
        claims = {
            "aud": [f"nvcf-icms:{cluster_id}"],
            "exp": int(now + life),
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "sub": SUBJECT,
            **changes,
        }
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(kept, self.key, algorithm="RS256", headers={"kid": self.key_id})
