"""New values of a running instance."""

from __future__ import annotations

import json
from typing import Any

from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.client.kinds import (
    CONFIG_MAP,
    MINI_SERVICE,
)
from nvcf_agent.kubernetes.helm import names
from nvcf_agent.kubernetes.helm.kinds import DEPLOYMENT
from nvcf_agent.state.events import Ready
from tests.kubernetes.helm.support import (
    SHORT,
    Setting,
    conditions,
    get,
    mini_service,
)
from tests.support.charts import example_chart
from tests.support.waiting import eventually


async def test_new_values_are_installed_and_wrong_ones_leave_the_old(setting: Setting) -> None:
    spec = setting.spec()
    async with setting.agent() as agent:
        await agent.backend.create(spec)
        await agent.until(Ready)

        async def change(**values: Any) -> Object:
            patch = {"spec": {"helmChartConfig": {"values": values}}}
            changed = await agent.api.patch(
                MINI_SERVICE, names.mini_service_name(spec.instance_id), None, patch
            )
            generation = changed["metadata"]["generation"]

            async def observed() -> bool:
                found = await mini_service(agent, spec)
                return bool(found["status"]["observedGeneration"] == generation)

            await eventually(observed, f"{values} are seen", SHORT)
            return await mini_service(agent, spec)

        async def replicas() -> int:
            return int((await get(agent, spec, DEPLOYMENT, "function"))["spec"]["replicas"])

        found = await change(replicas=2)
        assert (found["status"]["revision"], await replicas()) == (1, 2)
        found = await change(replicas=3, gpus=1)
        assert (found["status"]["revision"], found["status"]["phase"], await replicas()) == (1, "Running", 2)
        problem = next(each for each in found["status"]["conditions"] if each["type"] == "InstallSuccessful")
        assert "revision 1 runs on: the chart asks for 3 GPUs" in problem["message"]
        # The API server refuses this one, after some of its objects were applied.
        found = await change(replicas=-1, gpus=None, ignored=["x"])
        assert (found["status"]["revision"], await replicas()) == (1, 2)
        assert 'Deployment "function": the API server refuses it' in str(found["status"]["conditions"])
        code = await get(agent, spec, CONFIG_MAP, "function-code")
        assert json.loads(code["data"]["ignored.json"]) == ["the", "a", "an"]
        found = await change(replicas=4)
        assert (found["status"]["revision"], await replicas()) == (2, 4)
        assert conditions(found)["InstallSuccessful"] == ("True", "Installed")
        await agent.until(Ready)


async def test_objects_that_new_values_do_not_have_are_removed(setting: Setting) -> None:
    extra = """
{{- if .Values.extra }}
apiVersion: v1
kind: ConfigMap
metadata: {name: extra}
{{- end }}
"""
    setting.registry.charts["words:0.2.0"] = example_chart(extra=extra)
    spec = setting.spec("words:0.2.0", extra=True)
    async with setting.agent() as agent:
        await agent.backend.create(spec)
        await agent.until(Ready)
        await get(agent, spec, CONFIG_MAP, "extra")
        patch = {"spec": {"helmChartConfig": {"values": {"extra": False}}}}
        await agent.api.patch(MINI_SERVICE, names.mini_service_name(spec.instance_id), None, patch)
        namespace = names.namespace_of(spec.instance_id)

        async def gone() -> bool:
            return await agent.api.get(CONFIG_MAP, "extra", namespace) is None

        await eventually(gone, "the object is gone", SHORT)
