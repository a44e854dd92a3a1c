"""Management API: logins for registries (NVIDIA's `/v2/nvcf/registry-credentials`, by its names)."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.errors import HttpProblem, invalid_field
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response, timestamp
from nvcf_gateway.http.routing import Route, path_id
from nvcf_gateway.management.resources import authorized, stored, update
from nvcf_gateway.management.secret_bodies import RegistryChange, RegistryCreation, check_login
from nvcf_gateway.quotas.limits import Quota
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.owners import Owner
from nvcf_gateway.secrets.store import SecretStore
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.ids import new_id
from nvcf_proto.models import ArtifactType, RegistryCredential, Scope

BASE = "/v2/nvcf/registry-credentials"
# By user or by the platform itself: NVIDIA's words. Here all are by users.
PROVISIONED_BY = ("SYSTEM", "USER")
_IMAGES = (ArtifactType.CONTAINER, ArtifactType.HELM)
RECOGNIZED: dict[str, tuple[str, tuple[ArtifactType, ...]]] = {
    "nvcr.io": ("NGC", _IMAGES),
    "helm.ngc.nvidia.com": ("NGC", (ArtifactType.HELM,)),
    "api.ngc.nvidia.com": ("NGC", (ArtifactType.MODEL, ArtifactType.RESOURCE)),
    "docker.io": ("Docker Hub", _IMAGES),
    "ghcr.io": ("GitHub", _IMAGES),
    "quay.io": ("Quay", _IMAGES),
    "public.ecr.aws": ("AWS ECR Public", _IMAGES),
    "huggingface.co": ("Hugging Face", (ArtifactType.MODEL, ArtifactType.RESOURCE)),
}
"""Registries with a name, by host. A credential may be for any other host as well."""


class Registries:
    """Handlers of `/v2/nvcf/registry-credentials…` and `/v2/nvcf/recognized-registries`."""

    def __init__(
        self, authenticator: Authenticator, registry: Registry, usage: Usage, secrets: SecretStore
    ) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._usage = usage
        self._secrets = secrets

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = f"{BASE}/{{registry_id}}"
        return [
            ("POST", BASE, self.create),
            ("GET", BASE, self.list_all),
            ("GET", one, self.get),
            ("PATCH", one, self.change),
            ("DELETE", one, self.delete),
            ("GET", "/v2/nvcf/recognized-registries", self.recognized),
        ]

    async def create(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST: add a credential; 409 if the account has one for the host and type of artifact."""
        caller, now = self._caller(request, Scope.MANAGE), time.time()
        wanted = await read_record(request, RegistryCreation)
        self._secrets.require_keys()
        self._usage.require(caller.nca_id, Quota.REGISTRY_CREDENTIALS)
        made = RegistryCredential(
            id=new_id(),
            nca_id=caller.nca_id,
            name=wanted.secret.name,
            hostname=wanted.hostname,
            artifact_types=wanted.artifact_types,
            created_at=now,
            updated_at=now,
            tags=wanted.tags,
            description=wanted.description,
        )
        self._refuse_second(made)
        secret = {wanted.secret.name: wanted.secret.value}
        await self._secrets.merge(Owner.registry(made), secret, caller.subject, only=True)
        await stored(self._registry.registries.create(made.id, made))
        return json_response(200, {"registryCredential": shown_credential(made)})

    async def list_all(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET [?artifactType=&provisionedBy=]: list the account's credentials, oldest first."""
        caller = self._caller(request, Scope.LIST)
        kinds = _chosen(request, "artifactType", tuple(ArtifactType))
        by_user = "USER" in _chosen(request, "provisionedBy", PROVISIONED_BY)
        found = [
            each
            for each in self._registry.registries.values()
            if by_user and each.nca_id == caller.nca_id and kinds.intersection(each.artifact_types)
        ]
        found.sort(key=lambda each: (each.created_at, each.id))
        return json_response(200, {"registryCredentials": [shown_credential(each) for each in found]})

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/{id}: return one credential, without its secret."""
        found = self._own(self._caller(request, Scope.LIST), values)
        return json_response(200, {"registryCredential": shown_credential(found)})

    async def change(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PATCH …/{id}: replace the secret, add types of artifacts."""
        caller = self._caller(request, Scope.MANAGE)
        known = self._own(caller, values)
        wanted = await read_record(request, RegistryChange)
        if wanted.secret is not None:
            try:
                check_login(known.hostname, wanted.secret)
            except InvalidRecord as error:
                raise invalid_field(error) from None

        def changed(before: RegistryCredential) -> RegistryCredential:
            types = tuple(dict.fromkeys((*before.artifact_types, *wanted.artifact_types)))
            name = before.name if wanted.secret is None else wanted.secret.name
            return before.replace(artifact_types=types, name=name, updated_at=time.time())

        self._refuse_second(changed(known))
        if wanted.secret is not None:
            secret = {wanted.secret.name: wanted.secret.value}
            await self._secrets.merge(Owner.registry(known), secret, caller.subject, only=True)
        made = await update(self._registry.registries, known.id, changed)
        if made is None:
            raise HttpProblem(404, f"no registry credential {known.id}")
        return json_response(200, {"registryCredential": shown_credential(made)})

    async def delete(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE …/{id}."""
        caller = self._caller(request, Scope.MANAGE)
        known = self._own(caller, values)
        await stored(self._registry.registries.delete(known.id))
        await self._secrets.remove(Owner.registry(known), caller.subject)
        return web.Response(status=204)

    async def recognized(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/recognized-registries: list the registries with a name, by artifact type."""
        self._caller(request, Scope.LIST)
        by_type = {
            kind.value: [
                {"registryName": name, "registryHostname": host}
                for host, (name, kinds) in RECOGNIZED.items()
                if kind in kinds
            ]
            for kind in ArtifactType
        }
        return json_response(200, {"recognizedRegistries": by_type})

    def _caller(self, request: web.BaseRequest, scope: Scope) -> Caller:
        caller = authorized(self._authenticator, request, scope)
        caller.require_unlimited("use registry credentials")
        return caller

    def _own(self, caller: Caller, values: dict[str, str]) -> RegistryCredential:
        registry_id = path_id(values, "registry_id")
        found = self._registry.registries.get(registry_id)
        # A credential of another account looks like a missing one.
        if found is None or found.nca_id != caller.nca_id:
            raise HttpProblem(404, f"no registry credential {registry_id}")
        return found

    def _refuse_second(self, wanted: RegistryCredential) -> None:
        for each in self._registry.registries.values():
            same = each.nca_id == wanted.nca_id and each.hostname == wanted.hostname
            both = set(each.artifact_types) & set(wanted.artifact_types)
            if same and both and each.id != wanted.id:
                kinds = ", ".join(sorted(both))
                raise HttpProblem(
                    409, f"the credential {each.id} is for {kinds} of {each.hostname} already: change it"
                )


def shown_credential(found: RegistryCredential) -> dict[str, Any]:
    """Return a credential as the API shows it: all but the secret."""
    name, _ = RECOGNIZED.get(found.hostname, (found.hostname, ()))
    return {
        "registryCredentialId": found.id,
        "ncaId": found.nca_id,
        "registryCredentialName": found.name,
        "registryName": name,
        "registryHostname": found.hostname,
        "artifactTypes": [each.value for each in found.artifact_types],
        "tags": list(found.tags),
        **({"description": found.description} if found.description is not None else {}),
        "provisionedBy": "USER",
        "createdAt": timestamp(found.created_at),
        "lastUpdatedAt": timestamp(found.updated_at),
    }


def _chosen(request: web.BaseRequest, name: str, allowed: tuple[str, ...]) -> set[str]:
    """Return the values of a query parameter; all that are allowed without it. Raises HttpProblem 400."""
    given = [part for text in request.query.getall(name, []) for part in text.split(",")]
    if not set(given) <= set(allowed):
        raise HttpProblem(400, f"{name}: expected of {', '.join(allowed)}", field=name)
    return set(given or allowed)
