"""Routes of the management API."""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.routing import Handler, Route
from nvcf_gateway.management.accounts import Accounts
from nvcf_gateway.management.api_keys import ApiKeys
from nvcf_gateway.management.authorizations import AuthorizedParties
from nvcf_gateway.management.deployments import Deployments
from nvcf_gateway.management.events import EventLog, Events
from nvcf_gateway.management.functions import Management
from nvcf_gateway.management.gpus import Gpus
from nvcf_gateway.management.instances import Instances
from nvcf_gateway.management.invocation_tokens import InvocationTokens
from nvcf_gateway.management.queues import QueueDetails
from nvcf_gateway.management.quotas import Quotas
from nvcf_gateway.management.registries import Registries
from nvcf_gateway.management.secrets import FunctionSecrets
from nvcf_gateway.management.sharing import RateLimits, Sharing
from nvcf_gateway.management.telemetry_endpoints import TelemetryEndpoints
from nvcf_gateway.management.version_changes import VersionChanges
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.store import SecretStore


def management_routes(
    authenticator: Authenticator,
    registry: Registry,
    management: Management,
    deployments: Deployments,
    log: EventLog,
    usage: Usage,
    secrets: SecretStore,
    queues: QueueDetails,
) -> list[Route]:
    """Return the routes of functions, deployments, keys, sharing, rate limits, telemetry, secrets
    and events.
    """
    events = Events(authenticator, registry, log)
    keys = ApiKeys(authenticator, registry, usage)
    sharing = Sharing(registry, management)
    limits = RateLimits(registry, management)
    telemetries = TelemetryEndpoints(authenticator, registry, secrets)
    functions = "/v2/nvcf/functions"
    versions = functions + "/{function_id}/versions"
    deployment = "/v2/nvcf/deployments/functions/{function_id}/versions/{version_id}"
    authorizations = functions + "/{function_id}/authorizations"
    rate_limit = versions + "/{version_id}/rate-limit"
    routes: list[Route] = [
        ("POST", functions, management.create_function),
        ("GET", functions, management.list_functions),
        ("GET", functions + "/ids", management.list_ids),
        ("GET", functions + "/{function_id}", management.list_versions),
        ("DELETE", functions + "/{function_id}", management.delete_function),
        ("POST", versions, management.create_version),
        ("GET", versions, management.list_versions),
        ("GET", versions + "/{version_id}", management.get_version),
        ("DELETE", versions + "/{version_id}", management.delete_version),
        ("POST", deployment, deployments.deploy),
        ("PUT", deployment, deployments.update),
        ("GET", deployment, deployments.get),
        ("DELETE", deployment, deployments.undeploy),
        ("GET", "/v2/nvcf/deployments/{deployment_id}", deployments.get_by_id),
        (
            "PATCH",
            "/v2/nvcf/deployments/{deployment_id}/gpu-specifications/{specification_id}",
            deployments.patch,
        ),
        ("GET", "/v2/nvcf/instances", deployments.instances),
        ("DELETE", "/v2/nvcf/instances/{instance_id}", Instances(authenticator, registry).delete),
        ("POST", "/v2/nvcf/keys", keys.create),
        ("GET", "/v2/nvcf/keys", keys.list),
        ("GET", "/v2/nvcf/keys/{key_id}", keys.get),
        ("DELETE", "/v2/nvcf/keys/{key_id}", keys.revoke),
        ("PUT", authorizations, sharing.put),
        ("GET", authorizations, sharing.get),
        ("DELETE", authorizations, sharing.delete),
        ("PUT", rate_limit, limits.put),
        ("GET", rate_limit, limits.get),
        ("DELETE", rate_limit, limits.delete),
        ("POST", "/v2/nvcf/telemetries", telemetries.create),
        ("GET", "/v2/nvcf/telemetries", telemetries.list_all),
        ("GET", "/v2/nvcf/telemetries/{telemetry_id}", telemetries.get),
        ("PUT", "/v2/nvcf/telemetries/{telemetry_id}", telemetries.change),
        ("DELETE", "/v2/nvcf/telemetries/{telemetry_id}", telemetries.delete),
        ("PUT", "/v2/nvcf/secrets/telemetries/{telemetry_id}", telemetries.put_secret),
        ("DELETE", "/v2/nvcf/secrets/telemetries/{telemetry_id}", telemetries.delete_secret),
        *FunctionSecrets(authenticator, registry, management, secrets).routes(),
        *Registries(authenticator, registry, usage, secrets).routes(),
        ("GET", "/v2/nvcf/quotas", Quotas(authenticator, usage).get),
        ("GET", "/v2/nvcf/events", events.events),
        ("GET", "/v2/nvcf/clusters", events.clusters),
        *VersionChanges(registry, management).routes(),
        *AuthorizedParties(authenticator, registry, management).routes(),
        *Gpus(authenticator, registry).routes(),
        *queues.routes(),
        *InvocationTokens(authenticator, registry, usage).routes(),
    ]
    accounts = Accounts(authenticator, usage)
    routes += [*accounts.routes(), *accounts.aliases(routes)]
    return [(method, path, with_problems(handler)) for method, path, handler in routes]


def with_problems(handler: Handler) -> Handler:
    """Return a handler whose problems have the type and the words of the management API."""

    async def wrapped(request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        try:
            return await handler(request, values)
        except HttpProblem as problem:
            detail = problem.problem.detail
            if problem.status == 400 and detail is not None:
                detail = f"Invalid request: {detail}"
            problem.problem = replace(problem.problem, source="nv-boot", detail=detail)
            raise

    return wrapped
