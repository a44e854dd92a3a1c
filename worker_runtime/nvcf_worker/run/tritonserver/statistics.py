"""Reads a server's statistics every second: for the worker's slots and for its metrics."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import quote

import aiohttp

from nvcf_worker.run import slot_limits
from nvcf_worker.run.tritonserver.slots import Totals, next_slots, totals_of
from nvcf_worker.run.tritonserver.spec import spec_of
from nvcf_worker.run.tritonserver.telemetry import report

log = logging.getLogger("nvcf_worker")

FIRST_SLOTS = 64
"""Slots until the statistics say more: not a few batches alone, because each gRPC connection holds one."""
INTERVAL = 1.0
_TIMEOUT = 5.0


class Statistics:
    """The statistics of all models of one server, and the slots that follow from them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._slots = FIRST_SLOTS
        self._most_in_flight = 0
        self._totals: dict[str, Totals] = {}
        self._capacities: dict[str, int] = {}

    def limit(self) -> None:
        """Limit the worker's slots."""
        slot_limits.limit("triton", self._slots)

    def request_came(self) -> None:
        """Note how many requests are in flight now."""
        self._most_in_flight = max(self._most_in_flight, slot_limits.in_flight())

    async def follow(self) -> None:
        """Read the statistics until cancelled. While they cannot be read, nothing changes."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT)) as session:
            while True:
                await asyncio.sleep(INTERVAL)
                try:
                    await self._read(session)
                except (aiohttp.ClientError, TimeoutError) as error:
                    # Whether the server is healthy is found out elsewhere.
                    log.debug("no statistics of Triton: %s", str(error) or type(error).__name__)
                except Exception:
                    log.exception("the statistics of Triton could not be read")

    async def _read(self, session: aiohttp.ClientSession) -> None:
        found: dict[str, list[Any]] = {}
        for version in (await self._get(session, "/v2/models/stats"))["model_stats"]:
            found.setdefault(str(version["name"]), []).append(version)
        for name in found.keys() - self._capacities.keys():
            config = await self._get(session, f"/v2/models/{quote(name, safe='')}/config")
            self._capacities[name] = spec_of({"name": name}, config).capacity
        self._capacities = {name: self._capacities[name] for name in found}
        totals = {name: totals_of({"model_stats": versions}) for name, versions in found.items()}
        earlier, self._totals = self._totals, totals
        done = {name: totals[name].since(earlier[name]) for name in totals.keys() & earlier.keys()}
        for name, total in totals.items():
            report(name, total, done.get(name, Totals()))
        self._adapt(done)

    async def _get(self, session: aiohttp.ClientSession, path: str) -> Any:
        async with session.get(self._url + path, raise_for_status=True) as response:
            return await response.json(content_type=None)

    def _adapt(self, done: dict[str, Totals]) -> None:
        """Set the slots by what all models have done: requests to them share the slots."""
        self.request_came()  # sessions come without a request
        together = Totals(
            sum(each.requests for each in done.values()),
            queue=sum(each.queue for each in done.values()),
            compute_infer=sum(each.compute for each in done.values()),
        )
        used = self._most_in_flight >= self._slots
        self._most_in_flight = 0
        self._slots = next_slots(self._slots, sum(self._capacities.values()), together, used=used)
        self.limit()
