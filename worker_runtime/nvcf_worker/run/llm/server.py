"""The companion of an LLM worker: starts the engine, waits for its models, starts it again when it ends."""

from __future__ import annotations

import logging
from typing import Any

import aiohttp

from nvcf_worker.errors import NotReady, ServerUnreachable
from nvcf_worker.function.request import Request
from nvcf_worker.function.response import Outcome, Reply
from nvcf_worker.run import slot_limits
from nvcf_worker.run.batching.settings import SuggestsConcurrency
from nvcf_worker.run.llm.access import refusal
from nvcf_worker.run.llm.engines import OTHER, positive, slots_in
from nvcf_worker.run.llm.events import BROKEN, EventStream, is_event_stream
from nvcf_worker.run.llm.output import parse
from nvcf_worker.run.llm.settings import EngineSettings
from nvcf_worker.run.llm.telemetry import Measured
from nvcf_worker.run.sidecar.health import HealthCheck
from nvcf_worker.run.sidecar.restarting import RestartingServer
from nvcf_worker.run.sidecar.settings import SidecarSettings
from nvcf_worker.run.sidecar.upstream import RETRY_SECONDS

log = logging.getLogger("nvcf_worker")

HEALTH_SECONDS = 5.0
MOST_SLOTS = 1024
_TIMEOUT = aiohttp.ClientTimeout(total=10)


class LlmEngine(RestartingServer, SuggestsConcurrency):
    """An LLM engine, and its process if the worker starts it. opened: more paths that callers may use."""

    def __init__(self, settings: EngineSettings, ready_timeout: float, opened: frozenset[str]) -> None:
        check = HealthCheck("http", settings.host, settings.port, settings.engine.health)
        super().__init__(
            SidecarSettings(
                host=settings.host,
                port=settings.port,
                check=check,
                interval=HEALTH_SECONDS,
                ready_timeout=ready_timeout,
                command=settings.command,
            ),
            parse,
            "nvcf_worker.engine",
        )
        self._engine = settings
        self._opened = opened
        self._provider = "" if settings.engine is OTHER else settings.engine.name
        self._model = ""
        self.suggested_concurrency = slots_in(settings.engine, settings.command) or MOST_SLOTS
        self.register()

    async def handle(self, request: Request) -> Outcome:
        """Pass one request on, or refuse it (404).

        A stream that breaks off before its first event raises ServerUnreachable, as for any other request
        without a response: another attempt may succeed. Later it ends with an error event.
        """
        refused = refusal(request.method, request.target, self._opened)
        if refused is not None:
            return refused
        measured = Measured(request.target, self._provider, self._model)
        outcome = await self.upstream.handle(request)
        if isinstance(outcome, Reply):
            measured.complete(outcome.body, events=is_event_stream(outcome))
            return outcome
        if not is_event_stream(outcome):
            return outcome
        events = EventStream(outcome.source, request.target, self._on_unreachable, measured)
        try:
            outcome.first = await events.first(outcome.first)
        except BROKEN as error:
            await events.aclose()
            self._on_unreachable()
            reason = f"the engine ended before its response began: {str(error) or type(error).__name__}"
            raise ServerUnreachable(reason, after=RETRY_SECONDS) from error
        except BaseException:
            await events.aclose()
            raise
        outcome.source = events
        return outcome

    async def _prepare(self) -> str | None:
        try:
            async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
                return await self._look(session)
        except (aiohttp.ClientError, TimeoutError, ValueError, TypeError, KeyError) as error:
            return f"it does not say which models it serves: {str(error) or type(error).__name__}"

    async def _look(self, session: aiohttp.ClientSession) -> str | None:
        listed = await self._get(session, "/v1/models")
        models = [
            str(each["id"]) for each in listed.get("data", ()) if isinstance(each, dict) and "id" in each
        ]
        if not models:
            return "it lists no models yet"
        if missing := [each for each in self._engine.models if each not in models]:
            raise NotReady(f"the engine serves {', '.join(models)}, not {', '.join(missing)}; see --model")
        # Callers choose among several, by names that are theirs: those are no attribute of a metric.
        self._model = models[0] if len(models) == 1 else ""
        slots = await self._slots(session)
        slot_limits.limit("llm", slots)
        log.info("the engine serves %s, %d requests at once", ", ".join(models), slots)
        return None

    async def _slots(self, session: aiohttp.ClientSession) -> int:
        """Return how many requests the engine runs at once: more would wait in it, out of others' reach."""
        engine = self._engine.engine
        found = slots_in(engine, self._engine.command)
        if found is None and engine.slots_path:
            try:
                said = (await self._get(session, engine.slots_path)).get(engine.slots_member)
                found = int(str(said)) if positive(said) else None
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                log.debug("%s does not say its concurrency: %s", engine.name, error)
        return min(found or engine.default_slots, MOST_SLOTS)

    async def _get(self, session: aiohttp.ClientSession, path: str) -> dict[str, Any]:
        async with session.get(self._engine.url + path, raise_for_status=True) as response:
            found = await response.json(content_type=None)
        if not isinstance(found, dict):
            raise ValueError(f"{path}: a JSON object expected")
        return found
