"""Run every query of every dashboard on a real Prometheus that scrapes a real `nvcf up` under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.support.otlp.prometheus import Prometheus, needs_prometheus, running_prometheus
from tests.support.otlp.queries import panel_queries, share_queries, substituted
from tests.support.platform.nvcf_up import LocalUp, local_up
from tests.support.waiting import eventually

pytestmark = [needs_prometheus, pytest.mark.timeout(420)]
OTEL = Path(__file__).resolve().parents[2] / "otel"
ENOUGH_SECONDS = 150.0
FUNCTIONS = Path(__file__).with_name("observed_functions.py")
OR_ZERO = " or on () vector(0)"
WELL = {"NvcfProcessGone", "NvcfBrokerLost", "NvcfNoAutoscalerLeader", "NvcfQueueFull"}
STAND_IN_NVML = Path(__file__).with_name("stand_in_nvml.py")
# These are 0 on a healthy platform without sessions.
# No function here runs on Triton or an LLM engine; tests/triton and tests/llm have these metrics.
OF_SERVERS = re.compile("nv_inference_|gen_ai_server_")
MAY_BE_NOTHING = {"Sessions", "Session traffic", "Telemetry thrown away"}


@contextlib.asynccontextmanager
async def load(up: LocalUp) -> AsyncIterator[None]:
    """Run functions of all kinds and their callers for the length of the context."""
    deploy = {
        "steady": ("--concurrency", "4"),
        "spiky": ("--min", "0", "--max", "2", "--gpu", "SIM", "--scale-to-zero-delay", "3"),
        "batched": ("--concurrency", "16"),
        "streamed": ("--gpu", "SIM"),
        "dying": (),
    }
    source = await asyncio.to_thread(FUNCTIONS.read_text)
    # Workers import the module next to the function's file, because this machine has no GPU.
    await asyncio.to_thread(shutil.copy, STAND_IN_NVML, up.folder / "pynvml.py")
    ids = {}
    for name, flags in deploy.items():
        ids[name] = await up.deploy(name, f"{source}\nhandler = {name}\n", *flags)
    async with up.session() as session, asyncio.TaskGroup() as group:
        callers = [
            ("steady", 3, 0.05),
            ("batched", 8, 0.1),
            ("streamed", 2, 0.3),
            ("spiky", 1, 12.0),
            ("dying", 1, 4.0),
        ]
        tasks = [
            group.create_task(_call(session, f"/v2/nvcf/pexec/functions/{ids[name]}", pause))
            for name, count, pause in callers
            for _ in range(count)
        ]
        tasks.append(group.create_task(_refused(up, f"/v2/nvcf/pexec/functions/{ids['steady']}")))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _call(session: aiohttp.ClientSession, path: str, pause: float) -> None:
    number = 0
    while True:
        number += 1
        async with session.post(path, json={"number": number}) as response:
            await response.read()
        await asyncio.sleep(pause)


async def _refused(up: LocalUp, path: str) -> None:
    async with aiohttp.ClientSession(up.url, headers={"Authorization": "Bearer wrong"}) as session:
        while True:
            async with session.post(path, data=b"x") as response:
                assert response.status == 401
            await asyncio.sleep(0.5)


def all_queries() -> list[tuple[str, str]]:
    """Return names and queries of panels and recording rules."""
    found = []
    for file in sorted((OTEL / "dashboards").glob("*.json")):
        for panel, query in panel_queries(json.loads(file.read_text())):
            wanted = query if panel in MAY_BE_NOTHING else query.replace(OR_ZERO, "")
            if not OF_SERVERS.search(query):
                found.append((f"{file.stem}: {panel}", substituted(wanted)))
    for group in yaml.safe_load((OTEL / "prometheus" / "recording.yml").read_text())["groups"]:
        found += [(f"rule {rule['record']}", rule["record"]) for rule in group["rules"]]
    return found


async def without_data(prometheus: Prometheus, queries: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the queries without data."""
    return [each for each in queries if not await prometheus.has_data(each[1])]


async def no_shares(prometheus: Prometheus) -> list[tuple[str, str, str]]:
    """Return the values in percent panels that are not between 0 and 1."""
    wrong = []
    for file in sorted((OTEL / "dashboards").glob("*.json")):
        for panel, query in share_queries(json.loads(await asyncio.to_thread(file.read_text))):
            values = [each["value"][1] for each in await prometheus.query(substituted(query))]
            wrong += [
                (file.stem, panel, each)
                for each in values
                if not -1e-9 <= float(each) <= 1 + 1e-9 and each != "NaN"
            ]
    return wrong


async def alerts(prometheus: Prometheus, state: str) -> set[str]:
    """Return the names of the alerts in that state."""
    return {each["metric"]["alertname"] for each in await prometheus.query(f'ALERTS{{alertstate="{state}"}}')}


async def test_every_query_returns_data(tmp_path: Path) -> None:
    flags = ("--clusters", "2", "--gpus", "2")
    async with local_up(tmp_path, *flags) as up, load(up):
        scrape = yaml.safe_load(await asyncio.to_thread((up.data / "prometheus.yml").read_text))
        scrape["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        scrape["rule_files"] = [str(file) for file in sorted((OTEL / "prometheus").glob("*.yml"))]
        async with running_prometheus(tmp_path, yaml.safe_dump(scrape)) as prometheus:
            missing = all_queries()

            async def all_have_data() -> bool:
                missing[:] = await without_data(prometheus, missing)
                return not missing

            await eventually(
                all_have_data,
                "every query returns data",
                ENOUGH_SECONDS,
                story=lambda: "\n".join(f"{name}\n    {query}" for name, query in missing),
                interval=2,
            )
            down = [
                (each["labels"]["job"], each["lastError"])
                for each in await prometheus.targets()
                if each["health"] == "down" and each["labels"]["job"] != "nvcf-worker"
            ]
            assert not down
            assert not await no_shares(prometheus)

            # Real crashes fire a real alert, and no alert fires for what works.
            async def crash_alert() -> bool:
                return "NvcfInstancesCrash" in await alerts(prometheus, "firing")

            await eventually(crash_alert, "the alert fires", ENOUGH_SECONDS, interval=1)
            assert not WELL & (await alerts(prometheus, "firing") | await alerts(prometheus, "pending"))
