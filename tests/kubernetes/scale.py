"""How an agent does with many nodes and pods: `python -m tests.kubernetes.scale [NODES] [PODS]`.

A real API server with fake nodes, a real broker, an independent control plane. Prints its figures as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.informer import Informer
from nvcf_agent.kubernetes.client.kinds import POD
from tests.kubernetes import custom_resources
from tests.kubernetes.agent_site import KubeSite, kube_site
from tests.kubernetes.cluster import clusters
from tests.kubernetes.cluster.control_plane import Settings
from tests.kubernetes.cluster.kwok import Shape, fake_nodes
from tests.support.waiting import eventually

NAMESPACE = "scale"
GPUS = 16
# kwok gets so little of a busy machine that its nodes would count as lost.
PATIENT = Settings(node_grace_seconds=3600)
LONG = 3600.0
_AT_ONCE = 50
_IDLE_SECONDS = 20.0


class Usage:
    """Processor time of the agent between two moments, and its memory."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._cpu, self._at = self._now(), time.monotonic()

    def _now(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def lap(self) -> dict[str, float]:
        """Return what was used since the last lap."""
        cpu, at = self._now(), time.monotonic()
        used, passed = cpu - self._cpu, at - self._at
        self._cpu, self._at = cpu, at
        memory = self._process.memory_info().rss / 2**20
        return {
            "seconds": round(passed, 1),
            "cpu_seconds": round(used, 2),
            "cpu_share": round(used / passed, 3),
            "memory_mib": round(memory),
        }


@contextlib.contextmanager
def cluster_of(nodes: int) -> Iterator[Path]:
    """Run an API server with fake nodes, and return its kubeconfig."""
    with clusters.api_server(PATIENT) as cluster, fake_nodes(cluster) as fake:
        custom_resources.install(cluster)
        cluster.client.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        say("the API server runs")
        fake.add(nodes, Shape(gpus=GPUS))
        say(f"{nodes} nodes are ready")
        yield cluster.kubeconfig


async def measure(kubeconfig: Path, folder: Path, count: int) -> dict[str, Any]:
    """Make instances, restart the agent, end all, and return the figures."""
    found: dict[str, Any] = {"pods": count}
    seen: dict[str, float] = {}

    def on_pod(old: Object | None, new: Object | None) -> None:
        if old is None and new is not None:
            seen[new["metadata"]["name"]] = time.monotonic()

    async with (
        kube_site(folder, kubeconfig, NAMESPACE) as site,
        await Api.open(str(kubeconfig)) as api,
        asyncio.TaskGroup() as group,
    ):
        site.time_scale = 1.0
        pods = Informer(api, POD, namespace=NAMESPACE, on_change=on_pod)
        watching = group.create_task(pods.run())
        agent = await site.start_agent("--heartbeat", "2")
        usage = Usage(agent.pid)
        say("the agent is ready")
        await asyncio.sleep(_IDLE_SECONDS)
        found["idle_without_pods"] = usage.lap()
        sent: dict[str, float] = {}
        began = time.monotonic()
        orders = [site.gpu_order() for _ in range(count)]
        for start in range(0, count, _AT_ONCE):
            # As a control plane that orders what is needed next, not all at once.
            await eventually(
                lambda: len(seen) >= len(sent),
                "the pods of the messages before",
                LONG,
                story=lambda: site.log()[-4000:],
            )
            for ordered in orders[start:][:_AT_ONCE]:
                sent[ordered.id] = time.monotonic()
                await site.send(ordered)
            say(f"{len(seen)} pods")
        await eventually(lambda: len(seen) == count, "all pods", LONG, story=lambda: site.log()[-4000:])
        found["until_all_pods"] = round(time.monotonic() - began, 1)
        await until_running(site, [each.id for each in orders])
        found["until_all_reported_running"] = round(time.monotonic() - began, 1)
        found["starting"] = usage.lap()
        delays = sorted(seen[each] - sent[each] for each in sent)
        found["message_to_pod_seconds"] = {
            "median": round(statistics.median(delays), 2),
            "p95": round(delays[int(0.95 * (count - 1))], 2),
            "longest": round(delays[-1], 2),
        }
        alone = site.gpu_order()
        sent_at = time.monotonic()
        await site.send(alone)
        await eventually(lambda: alone.id in seen, "one more pod", LONG)
        say(json.dumps(found))
        found["one_more_message_to_pod_seconds"] = round(seen[alone.id] - sent_at, 3)
        await until_running(site, [alone.id])
        usage.lap()
        await asyncio.sleep(_IDLE_SECONDS)
        found["idle_with_pods"] = usage.lap()
        found["restart"] = await restart(site, pods, [*orders, alone])
        say(json.dumps(found))
        usage = Usage(site.agent.pid)
        began = time.monotonic()
        await site.end(*orders, alone)
        await eventually(lambda: not pods.objects, "no pods", LONG)
        found["until_all_ended"] = round(time.monotonic() - began, 1)
        found["ending"] = usage.lap()
        watching.cancel()
    return found


async def restart(site: KubeSite, pods: Informer, orders: list[Any]) -> dict[str, Any]:
    """Restart the agent, and return how long it takes to know all instances again."""
    before = {key: each["metadata"]["uid"] for key, each in pods.objects.items()}
    site.agent.terminate()
    await site.agent.wait()
    site.icms.reports.clear()
    began = time.monotonic()
    agent = await site.start_agent("--heartbeat", "2")
    found: dict[str, Any] = {"until_ready": round(time.monotonic() - began, 1)}
    await until_running(site, [each.id for each in orders])
    found["until_all_reported"] = round(time.monotonic() - began, 1)
    found |= Usage(agent.pid).lap() | {
        "cpu_seconds": round(sum(psutil.Process(agent.pid).cpu_times()[:2]), 2)
    }
    after = {key: each["metadata"]["uid"] for key, each in pods.objects.items()}
    found["pods_touched"] = len(before.items() ^ after.items())
    return found


def say(text: str) -> None:
    """Print what goes on, beside the figures."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


async def until_running(site: KubeSite, ids: list[str]) -> None:
    """Wait until instances are reported running."""
    await eventually(
        lambda: all(site.icms.last(each).get("instanceState") == "running" for each in ids),
        "all run",
        LONG,
        story=lambda: site.log()[-6000:] + str({each: site.icms.states(each) for each in ids}),
        interval=0.2,
    )


def main() -> None:
    """Measure and print."""
    nodes, pods = (int(each) for each in (*sys.argv[1:], "200", "2000")[:2])
    with cluster_of(nodes) as kubeconfig, tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(kubeconfig, Path(folder), pods))
    print(json.dumps({"nodes": nodes, **found}, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
