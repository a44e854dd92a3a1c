"""The pod `utils` of a Helm function: the worker alone, which sends requests to the chart's service. Pure."""

from dataclasses import replace

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.client.kinds import SECRET, SERVICE
from nvcf_agent.kubernetes.helm.names import COLLECTOR, MINI_SERVICE_LABEL, UTILS
from nvcf_agent.kubernetes.names import COMPONENT, MANAGED_BY, MANAGER
from nvcf_agent.kubernetes.pods.collector import collector_image
from nvcf_agent.kubernetes.pods.containers import INFERENCE
from nvcf_agent.kubernetes.pods.names import INSTANCE, secret_name
from nvcf_agent.kubernetes.pods.render import PodObjects, render
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.kubernetes.pods.variables import PLACEMENT
from nvcf_proto.environment import HELM_CHART_NAMESPACE


def worker_objects(
    spec: InstanceSpec, settings: PodSettings, namespace: str, mini_service: str
) -> PodObjects:
    """Return the pod of a container function without the function, and its objects.

    Raises `Unsupported` for an order that cannot run.
    """
    variables = {**settings.variables, HELM_CHART_NAMESPACE: namespace}
    own = replace(settings, namespace=namespace, variables=variables, collector_host=COLLECTOR)
    launch = spec.order.launch_specification.replace(
        # Models and resources would come into this pod, where the chart's do not see them.
        container_image=settings.worker_image, helm_chart=None, models=None, resources=None, worker_mode=None,
    )  # fmt: skip
    rendered = render(replace(spec, order=spec.order.replace(launch_specification=launch)), own)
    function = secret_name(spec.instance_id, "function")
    before = [
        (kind, _labelled(body, mini_service))
        for kind, body in rendered.before
        if (kind, body["metadata"]["name"]) != (SECRET, function)
    ]
    if collector_image(spec, settings):
        before.append((SERVICE, _labelled(_collector_service(namespace), mini_service)))
    return PodObjects(tuple(before), _without_function(rendered.pod, mini_service))


def _collector_service(namespace: str) -> Object:
    """Return the service by which the chart's pods reach the collector, from its first moment on."""
    ports = {"grpc": PLACEMENT.grpc_port, "http": PLACEMENT.http_port, "health": PLACEMENT.health_port}
    spec = {
        "selector": {MANAGED_BY: MANAGER, COMPONENT: INSTANCE},
        "ports": [{"name": name, "port": port} for name, port in ports.items()],
        "publishNotReadyAddresses": True,
    }
    return SERVICE.new(COLLECTOR, namespace, spec=spec)


def _without_function(pod: Object, mini_service: str) -> Object:
    spec = pod["spec"]
    containers = [each for each in spec["containers"] if each["name"] != INFERENCE]
    everyone = [*containers, *spec.get("initContainers", ())]
    mounted = {mount["name"] for each in everyone for mount in each.get("volumeMounts", ())}
    spec = {
        **spec,
        "containers": containers,
        "volumes": [each for each in spec["volumes"] if each["name"] in mounted],
    }
    labelled = _labelled(pod, mini_service)
    return {**labelled, "metadata": {**labelled["metadata"], "name": UTILS}, "spec": spec}


def _labelled(body: Object, mini_service: str) -> Object:
    metadata = body["metadata"]
    labels = {**metadata.get("labels", {}), MINI_SERVICE_LABEL: mini_service}
    return {**body, "metadata": {**metadata, "labels": labels}}
