"""`GET /v2/nvcf/figures`: rates, latencies and queues of a caller's functions."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.responses import json_response, timestamp
from nvcf_gateway.registry import Registry
from nvcf_gateway.stats.collector import SnapshotCollector
from nvcf_gateway.stats.history import STEP_SECONDS
from nvcf_gateway.stats.queues import Queue, Queues
from nvcf_gateway.stats.snapshot import WINDOW_STEPS, Recent, recent_json, series_json
from nvcf_proto.ids import is_id
from nvcf_proto.models import FunctionVersion, Scope

MAX_VERSIONS = 200
"""Versions whose queues are read for one response: each takes a request to the broker."""


class StatsRoute:
    """Handler of `GET /v2/nvcf/figures`."""

    def __init__(
        self, authenticator: Authenticator, registry: Registry, collector: SnapshotCollector, queues: Queues
    ) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._gatherer = collector
        self._queues = queues

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/figures[?functionVersionId=]: of the account's deployed versions, or of one."""
        caller = self._authenticator.caller(request.headers)
        caller.require(Scope.LIST)
        wanted = request.query.get("functionVersionId")
        if wanted is not None and not is_id(wanted):
            raise HttpProblem(400, "functionVersionId: not a UUID", field="functionVersionId")
        versions = self._versions(caller, wanted)
        return json_response(200, await self._stats(versions))

    def _versions(self, caller: Caller, wanted: str | None) -> list[FunctionVersion]:
        return [
            version
            for version in self._registry.versions.values()
            if version.nca_id == caller.nca_id
            and caller.key.covers(version.function_id)
            and wanted in (None, version.id)
            and (wanted is not None or self._registry.index.is_deployed(version.id))
        ]

    async def _stats(self, versions: list[FunctionVersion]) -> dict[str, Any]:
        collected = await self._gatherer.collect([version.id for version in versions])
        snapshot, now = collected.snapshot, time.time()

        def busiest_first(version: FunctionVersion) -> tuple[int, float]:
            recent = snapshot.versions.get(version.id, Recent())
            return -(recent.waiting + recent.window.left), -version.created_at

        versions = sorted(versions, key=busiest_first)[:MAX_VERSIONS]
        queues = await self._queues.read(version.id for version in versions)
        waiting = sum(each.waiting for each in snapshot.versions.values())
        return {
            "at": timestamp(now),
            "since": timestamp(snapshot.since),
            "gateways": {"answered": collected.replicas, "known": collected.known},
            "windowSeconds": WINDOW_STEPS * STEP_SECONDS,
            "stepSeconds": STEP_SECONDS,
            "versions": [
                {
                    "functionVersionId": version.id,
                    "functionId": version.function_id,
                    "functionName": version.name,
                    **recent_json(snapshot.versions.get(version.id, Recent()), snapshot.since, now),
                    "queue": _queue_json(queues.get(version.id)),
                }
                for version in versions
            ],
            "series": series_json(snapshot.steps, waiting, snapshot.since, now),
        }


def _queue_json(queue: Queue | None) -> dict[str, Any] | None:
    if queue is None:
        return None
    oldest = None if queue.oldest_seconds is None else round(queue.oldest_seconds, 3)
    return {"queued": queue.queued, "inFlight": queue.in_flight, "oldestSeconds": oldest}
