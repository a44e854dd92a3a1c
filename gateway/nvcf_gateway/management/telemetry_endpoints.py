"""Management API: where an account wants its telemetry (NVIDIA's `/v2/nvcf/telemetries`, by its names)."""

from __future__ import annotations

import time
import uuid
from typing import Any

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.errors import HttpProblem, invalid_field
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import path_id
from nvcf_gateway.management.bodies import TelemetryChange, TelemetryCreation
from nvcf_gateway.management.resources import authorized, stored, update
from nvcf_gateway.management.secret_bodies import TelemetrySecretChange, TelemetrySecretValue
from nvcf_gateway.management.shown import shown
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.owners import Owner
from nvcf_gateway.secrets.store import SecretStore
from nvcf_otel.byoo.providers import WHOLE, check_endpoint, secret_files, secret_keys
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import FunctionVersion, Scope, TelemetryEndpoint, TelemetrySecret

MAX_ENDPOINTS = 64
_NAMESPACE = uuid.UUID("5f0f3c52-3a3e-4b0e-9a51-6f6f5a4c3b1d")


def endpoint_id(nca_id: str, name: str) -> str:
    """Return an endpoint's id: it follows from account and name, so that a name exists only once."""
    return str(uuid.uuid5(_NAMESPACE, f"{nca_id}\0{name}"))


def build_endpoint(wanted: TelemetryChange, name: str, nca_id: str, now: float) -> TelemetryEndpoint:
    """Return the record of an endpoint. Raises HttpProblem 400 for what its provider does not take."""
    endpoint = TelemetryEndpoint(
        id=endpoint_id(nca_id, name),
        name=name,
        nca_id=nca_id,
        endpoint=wanted.endpoint,
        protocol=wanted.protocol,
        provider=wanted.provider,
        types=wanted.types,
        created_at=now,
        secret=TelemetrySecret(wanted.secret.name) if wanted.secret else None,
        settings=wanted.settings,
    )
    try:
        check_endpoint(endpoint)
        if wanted.secret is not None and wanted.secret.value is not None:
            _check_secret(endpoint, wanted.secret)
    except InvalidRecord as error:
        raise invalid_field(error) from None
    return endpoint


def _check_secret(endpoint: TelemetryEndpoint, secret: TelemetrySecretValue) -> None:
    """Raise InvalidRecord unless the secret is the endpoint's and has what its provider needs."""
    if secret.name != endpoint.secret_name:
        reason = f"the endpoint's secret is {endpoint.secret_name}" if endpoint.secret else "it has no secret"
        raise InvalidRecord("secret.name", reason)
    keys = [key for key in secret_keys(endpoint) if key != WHOLE]
    if keys and not (isinstance(secret.value, dict) and set(keys) <= secret.value.keys()):
        raise InvalidRecord("secret.value", f"expected an object with the keys {', '.join(keys)}")
    if not keys and isinstance(secret.value, dict):
        raise InvalidRecord("secret.value", "expected a string: this secret is one value")


class TelemetryEndpoints:
    """Handlers of `/v2/nvcf/telemetries…`."""

    def __init__(self, authenticator: Authenticator, registry: Registry, secrets: SecretStore) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._secrets = secrets

    async def create(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /v2/nvcf/telemetries: create an endpoint; 409 if the account has one of that name."""
        caller = self._manager(request)
        wanted = await read_record(request, TelemetryCreation)
        # As in NVIDIA's API the secret's name serves where no other is given.
        name = wanted.name or (wanted.secret.name if wanted.secret else "")
        made = build_endpoint(wanted, name, caller.nca_id, time.time())
        if len(self._of(caller)) >= MAX_ENDPOINTS:
            raise HttpProblem(409, f"the account has {MAX_ENDPOINTS} telemetry endpoints already: delete one")
        if self._registry.telemetries.get(made.id) is not None:
            raise HttpProblem(409, f"there is a telemetry endpoint {made.name!r} already: change it (PUT)")
        await self._keep_secret(made, wanted.secret, caller)
        await stored(self._registry.telemetries.create(made.id, made))
        return json_response(200, {"telemetry": shown_endpoint(made)})

    async def list_all(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/telemetries: list the account's endpoints by name."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        return json_response(200, {"telemetries": [shown_endpoint(each) for each in self._of(caller)]})

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/telemetries/{id}: return one endpoint."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        return json_response(200, {"telemetry": shown_endpoint(self._own(caller, values))})

    async def change(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT /v2/nvcf/telemetries/{id} [ext]: change all but the name, for later instances."""
        caller = self._manager(request)
        known = self._own(caller, values)
        wanted = await read_record(request, TelemetryChange)
        made = build_endpoint(wanted, known.name, caller.nca_id, known.created_at)
        for version in self._users(known):
            chosen = version.telemetries.by_type() if version.telemetries else {}
            lost = [kind for kind, each in chosen.items() if each == known.id and kind not in made.types]
            if lost:
                raise HttpProblem(409, f"{_named(version)} sends its {lost[0].value} there")
        if await update(self._registry.telemetries, known.id, lambda _: made) is None:
            raise HttpProblem(404, f"no telemetry endpoint {known.id}")
        await self._keep_secret(made, wanted.secret, caller)
        return json_response(200, {"telemetry": shown_endpoint(made)})

    async def delete(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE /v2/nvcf/telemetries/{id}: delete an endpoint; 409 while a version uses it."""
        caller = self._manager(request)
        known = self._own(caller, values)
        for version in self._users(known):
            raise HttpProblem(409, f"{_named(version)} uses it: delete that version first")
        await stored(self._registry.telemetries.delete(known.id))
        await self._secrets.remove(Owner.telemetry(known), caller.subject)
        return web.Response(status=204)

    async def put_secret(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT /v2/nvcf/secrets/telemetries/{id}: set its secret, for later instances."""
        caller = self._manager(request)
        endpoint = self._own(caller, values)
        wanted = (await read_record(request, TelemetrySecretChange)).secret
        try:
            _check_secret(endpoint, wanted)
        except InvalidRecord as error:
            raise invalid_field(error) from None
        await self._keep_secret(endpoint, wanted, caller)
        return web.Response(status=204)

    async def delete_secret(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE /v2/nvcf/secrets/telemetries/{id} [ext]: remove it; the clusters' files serve."""
        caller = self._manager(request)
        await self._secrets.remove(Owner.telemetry(self._own(caller, values)), caller.subject)
        return web.Response(status=204)

    async def _keep_secret(
        self, endpoint: TelemetryEndpoint, secret: TelemetrySecretValue | None, caller: Caller
    ) -> None:
        """Keep the value of an endpoint's secret, and no value of a secret with another name."""
        owner = Owner.telemetry(endpoint)
        if secret is not None and secret.value is not None:
            for other in self._registry.telemetries.values():
                same = other.nca_id == endpoint.nca_id and other.secret_name == secret.name
                if same and other.id != endpoint.id and self._secrets.names(Owner.telemetry(other).key):
                    # An instance may send to both, and finds secrets by their names.
                    raise HttpProblem(409, f"{other.name} has a secret {secret.name}: choose another name")
            await self._secrets.merge(owner, {secret.name: secret.value}, caller.subject, only=True)
        else:
            others = [name for name in self._secrets.names(owner.key) if name != endpoint.secret_name]
            await self._secrets.remove(owner, caller.subject, others)

    def _manager(self, request: web.BaseRequest) -> Caller:
        caller = authorized(self._authenticator, request, Scope.MANAGE)
        caller.require_unlimited("manage telemetry endpoints")
        return caller

    def _of(self, caller: Caller) -> list[TelemetryEndpoint]:
        found = [each for each in self._registry.telemetries.values() if self._visible(each, caller)]
        return sorted(found, key=lambda each: each.name)

    def _visible(self, endpoint: TelemetryEndpoint, caller: Caller) -> bool:
        """Whether it is the account's; for a key limited to some functions, whether one of them uses it."""
        if endpoint.nca_id != caller.nca_id:
            return False
        limited = caller.key.function_ids
        return not limited or any(each.function_id in limited for each in self._users(endpoint))

    def _own(self, caller: Caller, values: dict[str, str]) -> TelemetryEndpoint:
        telemetry_id = path_id(values, "telemetry_id")
        endpoint = self._registry.telemetries.get(telemetry_id)
        # An endpoint that the caller may not see looks like a missing one.
        if endpoint is None or not self._visible(endpoint, caller):
            raise HttpProblem(404, f"no telemetry endpoint {telemetry_id}")
        return endpoint

    def _users(self, endpoint: TelemetryEndpoint) -> list[FunctionVersion]:
        return [
            version
            for version in self._registry.versions.values()
            if version.telemetries and endpoint.id in version.telemetries.by_type().values()
        ]


def _named(version: FunctionVersion) -> str:
    return f"version {version.id} of {version.name}"


def shown_endpoint(endpoint: TelemetryEndpoint) -> dict[str, Any]:
    """Return an endpoint as the API shows it; `secretFiles` are the files that the clusters must have."""
    files = secret_files(endpoint)
    return {**shown(endpoint, "createdAt"), **({"secretFiles": list(files)} if files else {})}
