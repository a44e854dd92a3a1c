"""Logins for registries in the form of a docker configuration."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any

import pytest

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.secrets.registry_logins import account_k8s_secrets, credentials_of, k8s_secrets
from nvcf_proto.ids import new_id
from nvcf_proto.models import ArtifactType, RegistryCredential
from nvcf_proto.models.secrets import registry_owner


def credential(host: str, *types: ArtifactType, account: str = "one", at: float = 1.0) -> RegistryCredential:
    return RegistryCredential(
        id=new_id(),
        nca_id=account,
        name="robot",
        hostname=host,
        artifact_types=types,
        created_at=at,
        updated_at=at,
    )


def read(text: str) -> Any:
    return json.loads(base64.b64decode(text))


def test_the_form() -> None:
    assert read(k8s_secrets({"ghcr.io": "dTpw"})) == {
        "k8sSecrets": [{"auths": {"ghcr.io": {"auth": "dTpw"}}}]
    }
    assert read(k8s_secrets({})) == {"k8sSecrets": []}


def test_only_the_accounts_own_of_the_type() -> None:
    image, chart = ArtifactType.CONTAINER, ArtifactType.HELM
    mine = [credential("b.io", image, chart, at=2.0), credential("a.io", image)]
    others = [credential("a.io", image, account="two"), credential("c.io", chart)]
    assert credentials_of([*mine, *others], "one", image) == [mine[1], mine[0]]


class Values:
    """Secrets in plain, by owner."""

    def __init__(self, known: dict[str, dict[str, Any]]) -> None:
        self._known = known

    def require_known(self, key: str, *, expected: bool) -> None:
        if expected and key not in self._known:
            raise HttpProblem(503, "lost")

    async def values(self, key: str) -> dict[str, Any]:
        return self._known.get(key, {})


async def test_a_credential_without_a_secret_is_left_out() -> None:
    image = ArtifactType.CONTAINER
    one, two = credential("a.io", image), credential("b.io", image)
    registry: Any = SimpleNamespace(registries=SimpleNamespace(values=lambda: [one, two]))
    store: Any = Values({registry_owner(one.id): {"robot": "dTpw"}, registry_owner(two.id): {}})
    found = read(await account_k8s_secrets(registry, store, "one", image))
    assert found == {"k8sSecrets": [{"auths": {"a.io": {"auth": "dTpw"}}}]}


async def test_a_lost_login_is_not_left_out() -> None:
    one = credential("a.io", ArtifactType.CONTAINER)
    registry: Any = SimpleNamespace(registries=SimpleNamespace(values=lambda: [one]))
    store: Any = Values({})
    with pytest.raises(HttpProblem):
        await account_k8s_secrets(registry, store, "one", ArtifactType.CONTAINER)
