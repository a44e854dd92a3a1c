"""Routes about access (keys, shared functions, rate limits), what happens, and the description of all."""

from __future__ import annotations

from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.access.signed_tokens import DashboardTokens
from nvcf_gateway.dashboard.routes import dashboard_routes
from nvcf_gateway.management.api_keys import ApiKeys
from nvcf_gateway.management.events import EventLog, Events
from nvcf_gateway.management.functions import Management
from nvcf_gateway.management.sharing import RateLimits, Sharing
from nvcf_gateway.management.telemetry_endpoints import TelemetryEndpoints
from nvcf_gateway.openapi import serve_document
from nvcf_gateway.registry import Registry
from nvcf_gateway.server import Route
from nvcf_gateway.stats.routes import StatsRoute


def access_routes(
    authenticator: Authenticator,
    registry: Registry,
    management: Management,
    log: EventLog,
    stats: StatsRoute,
    dashboard_tokens: DashboardTokens | None,
) -> list[Route]:
    """Return their routes; without `dashboard_tokens` there is no dashboard."""
    events = Events(authenticator, registry, log)
    keys = ApiKeys(authenticator, registry)
    sharing = Sharing(registry, management)
    limits = RateLimits(registry, management)
    telemetries = TelemetryEndpoints(authenticator, registry)
    authorizations = "/v2/nvcf/functions/{function_id}/authorizations"
    rate_limit = "/v2/nvcf/functions/{function_id}/versions/{version_id}/rate-limit"
    return [
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
        ("GET", "/v2/nvcf/events", events.events),
        ("GET", "/v2/nvcf/clusters", events.clusters),
        ("GET", "/v2/nvcf/figures", stats.get),
        ("GET", "/openapi.json", serve_document),
        *([] if dashboard_tokens is None else dashboard_routes(authenticator, dashboard_tokens)),
    ]
