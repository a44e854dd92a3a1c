"""`GET /v2/nvcf/figures`: how a caller's functions are doing."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.management.functions import timestamp
from nvcf_gateway.registry import Registry
from nvcf_gateway.stats.gather import Gatherer
from nvcf_gateway.stats.history import STEP_SECONDS
from nvcf_gateway.stats.queues import Queue, Queues
from nvcf_gateway.stats.view import WINDOW_STEPS, Recent, counted, shown_recent, shown_series
from nvcf_proto.ids import is_id
from nvcf_proto.models import FunctionVersion, Scope

MOST_VERSIONS = 200
"""Deployed versions of which queues are read in one answer: one question to the broker each."""


class FiguresRoute:
    """Handler of the route."""

    def __init__(
        self, authenticator: Authenticator, registry: Registry, gatherer: Gatherer, queues: Queues
    ) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._gatherer = gatherer
        self._queues = queues

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """GET /v2/nvcf/figures[?functionVersionId=]: of the account's deployed versions, or of one."""
        caller = self._authenticator.caller(request.headers)
        caller.require(Scope.LIST)
        wanted = request.query.get("functionVersionId")
        if wanted is not None and not is_id(wanted):
            raise HttpProblem(400, "functionVersionId: not a UUID", field="functionVersionId")
        versions = self._versions(caller, wanted)
        return json_response(200, await self._figures(versions))

    def _versions(self, caller: Caller, wanted: str | None) -> list[FunctionVersion]:
        return [
            version
            for version in self._registry.versions.values()
            if version.nca_id == caller.nca_id
            and caller.key.covers(version.function_id)
            and wanted in (None, version.id)
            and (wanted is not None or self._registry.index.is_deployed(version.id))
        ]

    async def _figures(self, versions: list[FunctionVersion]) -> dict[str, Any]:
        gathered = await self._gatherer.gather([version.id for version in versions])
        figures, now = gathered.figures, time.time()

        def busiest_first(version: FunctionVersion) -> tuple[int, float]:
            recent = figures.versions.get(version.id, Recent())
            return -(recent.waiting + recent.window.left), -version.created_at

        versions = sorted(versions, key=busiest_first)[:MOST_VERSIONS]
        queues = await self._queues.read(version.id for version in versions)
        waiting = counted(figures.versions.values())
        return {
            "at": timestamp(now),
            "since": timestamp(figures.since),
            "gateways": {"answered": gathered.replicas, "known": gathered.known},
            "windowSeconds": WINDOW_STEPS * STEP_SECONDS,
            "stepSeconds": STEP_SECONDS,
            "versions": [
                {
                    "functionVersionId": version.id,
                    "functionId": version.function_id,
                    "functionName": version.name,
                    **shown_recent(figures.versions.get(version.id, Recent()), figures.since, now),
                    "queue": _shown_queue(queues.get(version.id)),
                }
                for version in versions
            ],
            "series": shown_series(figures.steps, waiting, figures.since, now),
        }


def _shown_queue(queue: Queue | None) -> dict[str, Any] | None:
    if queue is None:
        return None
    oldest = None if queue.oldest_seconds is None else round(queue.oldest_seconds, 3)
    return {"queued": queue.queued, "inFlight": queue.in_flight, "oldestSeconds": oldest}
