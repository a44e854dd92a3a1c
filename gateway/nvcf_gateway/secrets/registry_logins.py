"""The logins of an account for registries, in the form that a cluster's agent takes them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping

from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.store import SecretStore
from nvcf_proto.models import ArtifactType, RegistryCredential
from nvcf_proto.models.secrets import registry_owner


def credentials_of(
    credentials: Iterable[RegistryCredential], nca_id: str, *kinds: ArtifactType
) -> list[RegistryCredential]:
    """Return an account's credentials for any of these kinds of artifacts, oldest first. Pure."""
    found = [each for each in credentials if each.nca_id == nca_id and set(kinds) & set(each.artifact_types)]
    return sorted(found, key=lambda each: (each.created_at, each.id))


def k8s_secrets(logins: Mapping[str, str]) -> str:
    """Return base64 of `{"k8sSecrets":[{"auths":{HOST:{"auth":LOGIN}}}]}`: a docker configuration. Pure.

    `logins` has the base64 of `user:password` by host; without any the list is empty.
    """
    auths = {host: {"auth": login} for host, login in logins.items()}
    document = {"k8sSecrets": [{"auths": auths}] if auths else []}
    return base64.b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()


async def account_k8s_secrets(
    registry: Registry, store: SecretStore, nca_id: str, *kinds: ArtifactType
) -> str:
    """Return `k8s_secrets` of an account's credentials for kinds of artifacts. Raises HttpProblem 503."""
    logins: dict[str, str] = {}
    for credential in credentials_of(registry.registries.values(), nca_id, *kinds):
        store.require_known(registry_owner(credential.id), expected=True)
        values = await store.values(registry_owner(credential.id))
        if isinstance(login := values.get(credential.name), str):
            logins[credential.hostname] = login
    return k8s_secrets(logins)
