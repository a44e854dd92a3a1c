"""Keys of agents: API keys with the scope `agent` that are bound to one cluster."""

from __future__ import annotations

import time

from nvcf_gateway.management.resources import stored, update
from nvcf_gateway.registry import Registry
from nvcf_proto.compute import RegisteredCluster
from nvcf_proto.models import ApiKey, Scope
from nvcf_proto.models.keys import api_key_id, hash_api_key, new_api_key

OVERLAP_SECONDS = 600.0
"""How long earlier keys of a cluster are good after a new one was made."""


class ClusterKeys:
    """Makes and revokes them. The text of a key is returned once; only its hash is stored."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def create(self, cluster: RegisteredCluster) -> str:
        """Return a new key; earlier ones expire soon. Raises HttpProblem 409 and 503."""
        now = time.time()
        earlier = self._of(cluster.id)
        text = new_api_key()
        record = ApiKey(
            id=api_key_id(text),
            secret_hash=hash_api_key(text),
            nca_id=cluster.nca_id,
            scopes=(Scope.AGENT,),
            created_at=now,
            description=f"agent of the cluster {cluster.name}",
            cluster_id=cluster.id,
        )
        await stored(self._registry.keys.create(record.id, record))
        end = now + OVERLAP_SECONDS
        for key in earlier:
            await update(
                self._registry.keys,
                key.id,
                lambda each: each.replace(expires_at=min(end, each.expires_at or end)),
            )
        return text

    def live(self, cluster_id: str) -> list[str]:
        """Return the ids of a cluster's keys."""
        return [key.id for key in self._of(cluster_id)]

    async def revoke(self, cluster_id: str) -> None:
        """Revoke all keys of a cluster. Raises HttpProblem 409 and 503."""
        now = time.time()
        for key in self._of(cluster_id):
            await update(self._registry.keys, key.id, lambda each: each.revoked(now))

    def _of(self, cluster_id: str) -> list[ApiKey]:
        return [
            key
            for key in self._registry.keys.values()
            if key.cluster_id == cluster_id and key.revoked_at is None
        ]
