"""The description of the HTTP API says what the server serves, no more and no less."""

from __future__ import annotations

import inspect
import json
from typing import Any

from nvcf_gateway.app import http_routes
from nvcf_gateway.clusters.admin_routes import ClusterRoutes
from nvcf_gateway.clusters.agent_routes import AgentRoutes
from nvcf_gateway.dashboard.routes import dashboard_routes
from nvcf_gateway.management.queues import QueueDetails
from nvcf_gateway.management.routes import management_routes
from nvcf_gateway.objects.assets import Assets
from nvcf_gateway.objects.large_results import LargeResults
from nvcf_gateway.openapi import document
from nvcf_gateway.secrets.delivery import SecretDelivery
from nvcf_gateway.server import HttpServer
from nvcf_gateway.tasks.routes import TaskRoutes

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


class Anything:
    """Stands for a part whose handlers are named in the table and never called here."""

    def __getattr__(self, name: str) -> Any:
        return Anything()


def test_paths_and_methods_are_those_of_the_table() -> None:
    parts: dict[str, Any] = {name: Anything() for name in inspect.signature(HttpServer).parameters}
    nothing: Any = Anything()
    queues = QueueDetails(nothing, nothing, nothing, nothing, nothing)
    management = management_routes(nothing, nothing, nothing, nothing, nothing, nothing, nothing, queues)
    management += ClusterRoutes(nothing, nothing, nothing, nothing).routes()
    management += SecretDelivery(nothing, nothing, nothing, nothing).routes()
    management += TaskRoutes(nothing, nothing, nothing, nothing, nothing).routes()
    agents = AgentRoutes(nothing, nothing, nothing, nothing, nothing).routes()
    assets = Assets(nothing, nothing, nothing, 0, 0.0, nothing, nothing)
    large = LargeResults(nothing, nothing, 0)
    routes = http_routes(management, assets, large, nothing, dashboard_routes(nothing, nothing, nothing))
    server = HttpServer(**{**parts, "routes": routes, "agent_routes": agents})
    described = {
        (method.upper(), path)
        for path, operations in document()["paths"].items()
        for method in operations
        if method in METHODS
    }
    assert described == set(server.routes)


def test_every_reference_leads_somewhere_and_nothing_is_left_over() -> None:
    text = json.dumps(document())
    known = set(document()["components"]["schemas"])
    used = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert used == known


def test_operations_have_names_of_their_own_and_say_who_may_call() -> None:
    operations = [
        operation
        for path in document()["paths"].values()
        for method, operation in path.items()
        if method in METHODS
    ]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    for operation in operations:
        assert operation["summary"].endswith(".")
        if operation.get("security") != []:
            assert "401" in operation["responses"], operation["operationId"]
