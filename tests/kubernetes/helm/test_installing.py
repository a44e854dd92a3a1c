"""Charts are installed in namespaces of their own, or refused with a reason."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from functools import partial

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.kubernetes.client.kinds import (
    MINI_SERVICE,
    NAMESPACE,
    NETWORK_POLICY,
    POD,
    RESOURCE_QUOTA,
    SECRET,
    Kind,
)
from nvcf_agent.kubernetes.helm import names
from nvcf_agent.kubernetes.helm.kinds import DEPLOYMENT
from nvcf_agent.state.events import Ended, Ready, Unready
from nvcf_agent.state.managed_instance import Category
from nvcf_proto.icms.causes import Cause
from tests.kubernetes.helm.support import (
    SHORT,
    Agent,
    Setting,
    conditions,
    get,
    mini_service,
    name,
)
from tests.kubernetes.pod_backends import Source
from tests.support.charts import example_chart
from tests.support.waiting import eventually
from tests.unit.agent.kubernetes.test_helm_objects import collected


async def test_secrets_and_models_of_the_function_are_there_for_the_chart_also_after_a_restart(
    setting: Setting,
) -> None:
    source = Source()
    spec = setting.spec()
    models = [{"name": "m", "version": "1", "uri": "https://models.example/m.bin"}]
    launch = spec.order.launch_specification.replace(
        models=base64.b64encode(json.dumps(models).encode()).decode()
    )
    spec = replace(spec, order=spec.order.replace(launch_specification=launch))

    async def holds(agent: Agent, values: dict[str, str]) -> bool:
        data = (await get(agent, spec, SECRET, "nvcf-secrets")).get("data", {})
        return bool(json.loads(base64.b64decode(data.get("secrets.json", "e30="))) == values)

    async with setting.agent(source=source) as agent:
        await agent.backend.create(spec)
        await agent.until(Ready)
        assert await holds(agent, {"TOKEN": "one"})
        artifacts = (await get(agent, spec, SECRET, "nvcf-artifacts"))["data"]
        assert "models.example" in base64.b64decode(artifacts["artifacts.json"]).decode()
    async with setting.agent(spec, source=source) as agent:
        await agent.until(Ready)
        source.values = {"TOKEN": "two"}
        await eventually(partial(holds, agent, {"TOKEN": "two"}), "the new one is there", SHORT)
        await agent.backend.delete(spec.instance_id, 0)


async def test_a_chart_of_three_objects_runs_in_a_namespace_of_its_own(setting: Setting) -> None:
    spec = setting.spec(replicas=2)
    async with setting.agent() as agent:
        running = await agent.backend.create(spec)
        assert await agent.backend.create(spec) == running
        await agent.until(Ready)

        found = await mini_service(agent, spec)
        status = found["status"]
        assert (status["phase"], status["revision"], status["observedGeneration"]) == ("Running", 0, 1)
        assert status["renderedDetails"]["resources"] == [
            {"gvk": "apps/v1/Deployment", "count": 1},
            {"gvk": "v1/ConfigMap", "count": 1},
            {"gvk": "v1/Service", "count": 1},
        ]
        assert set(conditions(found).values()) == {("True", "Installed"), ("True", "Healthy")}
        assert found["spec"]["helmChartConfig"]["serviceName"] == "words"
        assert "auth" not in json.dumps(found["spec"])

        pod = (await get(agent, spec, DEPLOYMENT, "function"))["spec"]["template"]
        assert pod["metadata"]["labels"]["function-version-id"]
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["affinity"]["nodeAffinity"]
        assert {"name": "NVCF_INSTANCE_ID", "value": spec.instance_id} in pod["spec"]["containers"][0]["env"]
        assert pod["spec"]["imagePullSecrets"] == [{"name": "workload-regcred-0"}]
        assert (await get(agent, spec, SECRET, "workload-regcred-0"))["type"].endswith("dockerconfigjson")

        worker = await get(agent, spec, POD, "utils")
        assert [each["name"] for each in worker["spec"]["containers"]] == ["utils"]
        namespace = names.namespace_of(spec.instance_id)
        variables = await get(agent, spec, SECRET, f"{spec.instance_id}-worker")
        assert base64.b64decode(variables["data"]["HELM_CHART_NAMESPACE"]).decode() == namespace
        quota = await get(agent, spec, RESOURCE_QUOTA, "max-gpus")
        assert quota["spec"]["hard"]["requests.nvidia.com/gpu"] == "1"
        policies = {name(each) for each in (await agent.api.list(NETWORK_POLICY, namespace)).items}
        assert policies == {"nvcf-default-deny", "nvcf-allow-egress", "nvcf-allow-namespace"}
        of_namespace = await agent.api.get(NAMESPACE, namespace)
        assert of_namespace is not None
        assert of_namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
        await end(agent, spec)


async def test_telemetry_of_a_chart_goes_through_the_collector_beside_its_worker(setting: Setting) -> None:
    spec = replace(setting.spec(), telemetry=collected().telemetry)
    async with setting.agent() as agent:
        await agent.backend.create(spec)
        await agent.until(Ready)
        worker = await get(agent, spec, POD, "utils")
        assert [each["name"] for each in worker["spec"]["initContainers"]] == ["byoo-otel-collector"]
        (container,) = (await get(agent, spec, DEPLOYMENT, "function"))["spec"]["template"]["spec"][
            "containers"
        ]
        variables = {each["name"]: each.get("value") for each in container["env"]}
        assert variables["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "http://byoo-otel-collector:14357"

        async def is_reached() -> bool:
            slices = await agent.api.list(
                Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
                names.namespace_of(spec.instance_id),
                labels="kubernetes.io/service-name=byoo-otel-collector",
            )
            found = [each for one in slices.items for each in one.get("endpoints") or ()]
            return [each["targetRef"]["name"] for each in found] == ["utils"]

        await eventually(is_reached, "the service leads to the worker's pod", SHORT)
        await end(agent, spec)


async def end(agent: Agent, spec: InstanceSpec) -> None:
    """Delete an instance, and see that nothing of it is left."""
    await agent.backend.delete(spec.instance_id, 5)
    ended = await agent.until(Ended)
    assert ended.final
    assert ended.gone
    assert await agent.backend.list() == []
    service = names.mini_service_name(spec.instance_id)

    async def gone() -> bool:
        return (
            await agent.api.get(MINI_SERVICE, service) is None
            and await agent.api.get(NAMESPACE, names.namespace_of(spec.instance_id)) is None
        )

    await eventually(gone, "MiniService and namespace are gone", SHORT)
    left = await agent.api.list(
        SECRET, agent.backend._pod_settings.namespace, labels=names.MINI_SERVICE_LABEL
    )
    assert not left.items


async def test_a_chart_that_breaks_the_rules_is_not_installed(setting: Setting) -> None:
    deployment = example_chart(
        deployment="""
apiVersion: apps/v1
kind: Deployment
metadata: {name: words}
spec:
  template:
    spec: {hostNetwork: true, containers: [{name: a, image: b}]}
"""
    )
    setting.registry.charts["words:0.2.0"] = deployment
    spec = setting.spec("words:0.2.0")
    async with setting.agent() as agent:
        await agent.backend.create(spec)
        ended = await agent.until(Ended, "hostNetwork gives pods the node's network: remove it")
        assert (ended.cause, ended.category) == (Cause.TERMINAL_ERROR, Category.INVALID_CHART)
        assert ended.final
        assert not ended.gone
        found = await mini_service(agent, spec)
        assert found["status"]["phase"] == "InstallFailed"
        assert conditions(found)["InstallSuccessful"] == ("False", "ReValResultInvalid")
        assert await agent.api.get(NAMESPACE, names.namespace_of(spec.instance_id)) is None
        await agent.backend.delete(spec.instance_id, 0)
        await eventually(lambda: not agent.backend._services.objects, "it is gone", SHORT)


async def test_what_the_api_server_refuses_is_named(setting: Setting) -> None:
    service = """
apiVersion: v1
kind: Service
metadata: {name: words}
spec:
  clusterIP: 1.2.3.4
  ports: [{port: 8000}]
"""
    setting.registry.charts["words:0.2.0"] = example_chart(service=service)
    async with setting.agent() as agent:
        await agent.backend.create(spec := setting.spec("words:0.2.0"))
        await agent.until(Ended, 'Service "words": the API server refuses it')
        assert conditions(await mini_service(agent, spec))["InstallSuccessful"] == ("False", "ObjectsFailed")


async def test_a_registry_that_is_away_is_waited_for(setting: Setting) -> None:
    setting.registry.damaged = True
    async with setting.agent() as agent:
        await agent.backend.create(setting.spec())
        await agent.until(Unready, "arrived damaged")
        setting.registry.damaged = False
        await agent.until(Ready)


async def test_a_chart_that_the_registry_does_not_have_fails_and_may_be_tried_again(setting: Setting) -> None:
    spec = setting.spec("words:0.3.0")
    async with setting.agent() as agent:
        await agent.backend.create(spec)
        ended = await agent.until(Ended, "there is no chart")
        assert (ended.cause, ended.category) == (Cause.IMAGE_PULL, Category.CHART_PULL)
        found = conditions(await mini_service(agent, spec))
        assert found["InstallSuccessful"] == ("False", "ChartUnavailable")
        await agent.backend.delete(spec.instance_id, 0)
        await eventually(lambda: not agent.backend._services.objects, "it is gone", SHORT)
        setting.registry.charts["words:0.3.0"] = example_chart()
        await agent.backend.create(setting.spec("words:0.3.0"))
        await agent.until(Ready)


async def test_a_namespace_of_somebody_else_is_not_touched(setting: Setting) -> None:
    spec = setting.spec()
    async with setting.agent() as agent:
        namespace = names.namespace_of(spec.instance_id)
        await agent.api.create(NAMESPACE, {"metadata": {"name": namespace}})
        await agent.backend.create(spec)
        await agent.until(Ended, f"the namespace {namespace} exists and is not of")
        await agent.backend.delete(spec.instance_id, 0)
        await eventually(lambda: not agent.backend._services.objects, "it is gone", SHORT)
        there = await agent.api.get(NAMESPACE, namespace)
        assert there is not None
        assert there["status"]["phase"] == "Active"
        await agent.api.delete(NAMESPACE, namespace)
