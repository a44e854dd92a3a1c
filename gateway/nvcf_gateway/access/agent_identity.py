"""Who an agent is: an API key bound to its cluster, or a token signed with a key of its cluster's key set.

See protocol.md, section 6.2. All clusters' tokens may have the same issuer and subject, so a token counts for
one cluster only: the one whose key set verifies it and whose id is its audience.
"""

from __future__ import annotations

import functools
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from nvcf_gateway.access.authorization import bearer_token
from nvcf_gateway.errors import GatewayError, HttpProblem
from nvcf_gateway.registry import Registry
from nvcf_proto.compute import RegisteredCluster
from nvcf_proto.errors import InvalidToken
from nvcf_proto.models import ApiKey, Scope
from nvcf_proto.models.keys import api_key_id, hash_api_key

CLUSTER_HEADER = "X-Nv-Cluster-Id"
AUDIENCE_PREFIX = "nvcf-icms:"
ALGORITHM = "RS256"
CLOCK_SECONDS = 30.0
"""How much the clocks of a cluster and of the gateway may differ."""
MOST_KEYS = 32
LEAST_KEY_BITS = 2048
LONGEST_TOKEN = 16 * 1024
_KEY_SETS = 256


class AgentRefused(GatewayError):
    """The credential does not prove that it comes from the cluster's agent; the text says why.

    `other_cluster`: it is good, but for another cluster.
    """

    def __init__(self, reason: str, *, other_cluster: bool = False) -> None:
        super().__init__(reason)
        self.other_cluster = other_cluster


@dataclass(frozen=True)
class Agent:
    """An agent that has proved its identity, and by which key, if not by a token.

    `expires_at` is when its credential ends, if it does.
    """

    cluster: RegisteredCluster
    expires_at: float | None = None
    key_id: str = ""

    @property
    def connection_name(self) -> str:
        """The name that the broker keeps with the agent's connection; agents cannot choose it."""
        return f"{self.cluster.id}.{self.key_id}"


class AgentAccess:
    """Checks credentials of agents. Every replica can."""

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._clock = clock

    def verify(self, cluster_id: str, credential: str) -> Agent:
        """Return the agent of a cluster. Raises AgentRefused."""
        cluster = self._registry.registered_clusters.get(cluster_id)
        try:
            key_id = api_key_id(credential)
        except InvalidToken:
            return self._by_token(cluster, credential)
        return self._by_key(cluster, self._registry.keys.get(key_id), credential)

    def introspect(self, token: str) -> dict[str, Any]:
        """Return what a projected token proves, in the form of RFC 7662. Raises AgentRefused."""
        try:
            named = jwt.decode(token, options={"verify_signature": False})
            audience = named.get("aud")
        except jwt.InvalidTokenError as error:
            raise AgentRefused("not a JSON Web Token") from error
        audiences = audience if isinstance(audience, list) else [audience]
        prefixed = [each for each in audiences if isinstance(each, str) and each.startswith(AUDIENCE_PREFIX)]
        if not prefixed:
            raise AgentRefused(f"the token has no audience {AUDIENCE_PREFIX}CLUSTER")
        cluster_id = prefixed[0].removeprefix(AUDIENCE_PREFIX)
        cluster = self._registry.registered_clusters.get(cluster_id)
        if cluster is None or cluster.evicted:
            raise AgentRefused("neither a valid cluster key nor a valid token of the cluster")
        agent = self._by_token(cluster, token)
        members = {"sub": named.get("sub"), "iss": named.get("iss"), "exp": agent.expires_at}
        return {
            "active": True,
            "aud": prefixed[0],
            "clusterId": cluster_id,
            "client_id": cluster_id,
            "tokenType": "psat",
            "token_type": "psat",
            **{name: value for name, value in members.items() if value is not None},
        }

    def _by_key(self, cluster: RegisteredCluster | None, key: ApiKey | None, text: str) -> Agent:
        # Compare for unknown keys too, so that the time of the comparison reveals nothing.
        expected = key.secret_hash if key is not None else "0" * 64
        if not hmac.compare_digest(expected, hash_api_key(text)) or key is None:
            raise AgentRefused("the cluster key is not valid")
        if not key.is_live(self._clock()):
            raise AgentRefused("the cluster key has expired")
        if not key.allows(Scope.AGENT) or key.cluster_id is None:
            raise AgentRefused("the API key is not that of a cluster: register one to get its key")
        if cluster is None or key.cluster_id != cluster.id:
            raise AgentRefused("the cluster key is for another cluster", other_cluster=True)
        return Agent(cluster, key.expires_at, key.id)

    def why_void(self, connection_name: str) -> str | None:
        """Return why a connection of that name has lost its right; None while it has it."""
        cluster_id, _, key_id = connection_name.partition(".")
        cluster = self._registry.registered_clusters.get(cluster_id)
        if cluster is None or cluster.evicted:
            return "its cluster was deleted"
        key = self._registry.keys.get(key_id) if key_id else None
        if key_id and (key is None or not key.is_live(self._clock())):
            return "its key is no longer valid"
        if not key_id and cluster.jwks is None:
            return "its cluster has no key set any more"
        return None

    def _by_token(self, cluster: RegisteredCluster | None, text: str) -> Agent:
        invalid = AgentRefused("neither a valid cluster key nor a valid token of the cluster")
        if cluster is None or cluster.jwks is None or len(text) > LONGEST_TOKEN:
            raise invalid
        try:
            key_id = jwt.get_unverified_header(text).get("kid")
            keys = read_key_set(cluster.jwks)
        except (jwt.InvalidTokenError, ValueError) as error:
            raise invalid from error
        named = [key for key in keys if key.key_id == key_id]
        for key in named or [key for key in keys if key_id is None or key.key_id is None]:
            try:
                claims = jwt.decode(
                    text,
                    key,
                    algorithms=[ALGORITHM],
                    audience=AUDIENCE_PREFIX + cluster.id,
                    issuer=cluster.oidc_issuer,
                    leeway=CLOCK_SECONDS,
                    options={"require": ["exp", "aud"]},
                )
                return Agent(cluster, float(claims["exp"]))
            except jwt.ExpiredSignatureError:
                raise AgentRefused("the token of the cluster has expired") from None
            except (jwt.InvalidTokenError, TypeError, ValueError, OverflowError):
                continue
        raise invalid


def calling_agent(access: AgentAccess, headers: Mapping[str, str]) -> Agent:
    """Return the agent that calls. Raises HttpProblem 401, and 403 for another cluster's identity."""
    credential = bearer_token(headers)
    cluster_id = headers.get(CLUSTER_HEADER, "")
    if not cluster_id:
        raise HttpProblem(403, f"header {CLUSTER_HEADER} is missing: it names the agent's cluster")
    try:
        return access.verify(cluster_id, credential)
    except AgentRefused as refused:
        raise HttpProblem(403 if refused.other_cluster else 401, str(refused)) from None


@functools.lru_cache(maxsize=_KEY_SETS)
def read_key_set(text: str) -> tuple[jwt.PyJWK, ...]:
    """Return the RSA keys of a JWKS document. Raises ValueError, which says what is wrong with it."""
    try:
        found = jwt.PyJWKSet.from_json(text).keys
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        # RuntimeError: JSON that is too deep, or a key for the algorithm `none`.
        raise ValueError(f"not a JSON Web Key Set: {error or type(error).__name__}") from None
    if any(key.key_type == "RSA" and not isinstance(key.key, RSAPublicKey) for key in found):
        raise ValueError("the key set has a private key: make a new one, and send its public half only")
    keys = tuple(key for key in found if isinstance(key.key, RSAPublicKey))
    if not keys:
        raise ValueError("the key set has no RSA key")
    if any(key.key.key_size < LEAST_KEY_BITS for key in keys):
        raise ValueError(f"the key set has an RSA key of less than {LEAST_KEY_BITS} bits")
    if len(keys) > MOST_KEYS:
        raise ValueError(f"the key set has more than {MOST_KEYS} keys")
    return keys
