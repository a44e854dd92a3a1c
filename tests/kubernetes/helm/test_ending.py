"""How instances end: by failures, and in order."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from dataclasses import replace

import pytest

from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.client.kinds import (
    CONFIG_MAP,
    POD,
    SERVICE,
    Kind,
)
from nvcf_agent.kubernetes.helm import names
from nvcf_agent.kubernetes.helm.fetch import FetchSettings
from nvcf_agent.kubernetes.helm.kinds import DEPLOYMENT
from nvcf_agent.kubernetes.pods.observe import Limits
from nvcf_agent.state.events import Ended, Ready, Unready
from nvcf_agent.state.managed_instance import Category
from nvcf_proto.icms.causes import Cause
from tests.kubernetes.helm.support import (
    SHORT,
    Setting,
    conditions,
    mini_service,
)
from tests.support.charts import example_chart
from tests.support.waiting import eventually


async def test_a_namespace_that_does_not_go_is_named_with_what_hangs(setting: Setting) -> None:
    spec = setting.spec()
    async with setting.agent(cleanup=1.0) as agent:
        await agent.backend.create(spec)
        await agent.until(Ready)
        namespace = names.namespace_of(spec.instance_id)
        stuck: Object = {
            "metadata": {"name": "stuck", "namespace": namespace, "finalizers": ["example.com/x"]}
        }
        await agent.api.create(CONFIG_MAP, stuck)
        with suppress(Exception):
            await agent.backend.delete(spec.instance_id, 1)
        await agent.until(Ended)

        async def told() -> bool:
            found = await mini_service(agent, spec)
            return any(
                each["reason"] == "NamespaceStuck" and "example.com/x" in each["message"]
                for each in found["status"]["conditions"]
            )

        await eventually(told, "the finalizer is named", SHORT)
        await agent.api.patch(CONFIG_MAP, "stuck", namespace, {"metadata": {"finalizers": None}})
        await eventually(lambda: not agent.backend._services.objects, "it is gone", SHORT)


@pytest.mark.parametrize(
    ("kind", "deleted", "text", "cause"),
    [
        (DEPLOYMENT, "function", 'Deployment "function" was deleted, and not by the agent', Cause.NOT_FOUND),
        (SERVICE, "words", 'Service "words" was deleted, and not by the agent', Cause.NOT_FOUND),
        (POD, "utils", "the worker's pod was deleted", Cause.UTILS_POD_NOT_FOUND),
    ],
)
async def test_what_somebody_deletes_ends_the_instance(
    setting: Setting, kind: Kind, deleted: str, text: str, cause: Cause
) -> None:
    spec = setting.spec()
    async with setting.agent() as agent:
        await agent.backend.create(spec)
        await agent.until(Ready)
        await agent.api.delete(kind, deleted, names.namespace_of(spec.instance_id), grace=0)
        ended = await agent.until(Ended, text)
        assert ended.cause is cause
        assert (await mini_service(agent, spec))["status"]["phase"] == "Failed"


async def test_registries_that_do_not_answer_hold_up_no_instance_that_runs(setting: Setting) -> None:
    asked: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: asked.append(writer), "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    hosts = frozenset((host, setting.registry.host))
    spec = setting.spec()
    async with setting.agent(fetch=FetchSettings(private=hosts, plain=hosts, seconds=10 * SHORT)) as agent:
        await agent.backend.create(spec)
        await agent.until(Ready)
        for _ in range(20):
            slow = setting.spec()
            launch = slow.order.launch_specification.replace(helm_chart=f"oci://{host}/charts/slow:1")
            slow = replace(slow, order=slow.order.replace(launch_specification=launch))
            await agent.backend.create(slow)
        await eventually(lambda: len(asked) > 1, "charts are asked for", SHORT)
        await agent.api.delete(DEPLOYMENT, "function", names.namespace_of(spec.instance_id))
        await agent.until(Ended, "was deleted, and not by the agent")
    for each in asked:
        each.close()
    server.close()
    await server.wait_closed()


async def test_a_chart_without_room_ends_with_the_schedulers_words(setting: Setting) -> None:
    spec = setting.spec(gpus=9, gpusWanted=9)
    values = json.dumps({"image": "x", "gpus": 9})
    launch = spec.order.launch_specification.replace(configuration=base64.b64encode(values.encode()).decode())
    spec = replace(spec, order=spec.order.replace(launch_specification=launch))
    async with setting.agent(limits=Limits(unscheduled=2.0)) as agent:
        await agent.backend.create(spec)
        ended = await agent.until(Ended, "Insufficient nvidia.com/gpu")
        assert (ended.cause, ended.category) == (Cause.NO_CAPACITY, Category.CAPACITY)
        found = conditions(await mini_service(agent, spec))
        assert found["ObjectsHealthy"] == ("False", "ObjectsTimedOutPending")


async def test_a_chart_may_leave_its_health_to_the_worker(setting: Setting) -> None:
    config = """
apiVersion: v1
kind: ConfigMap
metadata: {name: nvcf-workload-config}
data:
  config.yaml: |
    featureFlags: {StatusByWorkerReadiness: true}
"""
    setting.registry.charts["words:0.2.0"] = example_chart(config=config)
    async with setting.agent() as agent:
        await agent.backend.create(spec := setting.spec("words:0.2.0"))
        await agent.until(Ready)
        await agent.api.delete(DEPLOYMENT, "function", names.namespace_of(spec.instance_id))
        await eventually(lambda: agent.backend._keepers, "a look")
        assert isinstance(agent.last(Ready, Unready, Ended), Ready)
