"""From an order to the objects that are installed: fetch, render, check, add."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.errors import Unsupported
from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP, SECRET, Kind
from nvcf_agent.kubernetes.helm.command import Helm, Release
from nvcf_agent.kubernetes.helm.decorate import Decoration, decorate
from nvcf_agent.kubernetes.helm.errors import ChartError
from nvcf_agent.kubernetes.helm.fetch import Fetcher, parse_logins, parse_source
from nvcf_agent.kubernetes.helm.manifests import parse_manifests
from nvcf_agent.kubernetes.helm.names import ARTIFACTS, COLLECTOR, MINI_SERVICE_LABEL, TAKEN, WORKLOAD_CONFIG
from nvcf_agent.kubernetes.helm.settings import HelmSettings
from nvcf_agent.kubernetes.names import COMPONENT, MANAGED_BY
from nvcf_agent.kubernetes.pods import names
from nvcf_agent.kubernetes.pods.launch import ContainerLaunch, auths_for, decoded, parse_launch, registry_of
from nvcf_agent.kubernetes.pods.render import artifact_files, encoded, login_members, node_affinity
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.kubernetes.pods.variables import function_variables
from nvcf_agent.state import order as orders
from nvcf_proto.charts.objects import containers, member, name_of, pod_template
from nvcf_proto.charts.policy import chosen_policy
from nvcf_proto.charts.rules import Target, check_chart
from nvcf_proto.environment import HELM_CHART_INFERENCE_SERVICE_NAME, INFERENCE_PORT
from nvcf_proto.errors import ContractError, InvalidRecord
from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.models.specifications import HelmValidationPolicy

RENDERS_AT_ONCE = 2
_PULL_SECRET = "workload-regcred"
_LOGINS = "HELM_REGISTRIES_CREDENTIALS"


@dataclass(frozen=True)
class ChartOrder:
    """What a creation message says of its chart."""

    url: str
    service: str
    port: int
    values: Mapping[str, Any]
    policy: HelmValidationPolicy | None
    logins: Mapping[str, str]

    def with_values(self, values: Mapping[str, Any]) -> "ChartOrder":
        """Return the order with other values."""
        return replace(self, values=values)


def parse_chart(order: CreationMessage) -> ChartOrder:
    """Return what a message says of its chart. Raises `Unsupported`. Pure."""
    launch = order.launch_specification
    try:
        variables = orders.environment(order)
        url = launch.helm_chart or ""
        parse_source(url)
        service, port = (
            variables.get(HELM_CHART_INFERENCE_SERVICE_NAME, ""),
            variables.get(INFERENCE_PORT, ""),
        )
        if not service:
            raise Unsupported("the order names no helmChartServiceName")
        policy = _decoded(launch.helm_validation_policy, "helmValidationPolicy")
        return ChartOrder(
            url,
            service,
            int(port) if port.isascii() and port.isdigit() else 0,
            _decoded(launch.configuration, "configuration") or {},
            None if policy is None else HelmValidationPolicy.from_dict(policy),
            parse_logins(variables.get(_LOGINS)),
        )
    except (InvalidRecord, ChartError) as error:
        raise Unsupported(str(error)) from error


def _decoded(text: str | None, what: str) -> dict[str, Any] | None:
    found = decoded(text, what)
    if found is not None and not isinstance(found, dict):
        raise InvalidRecord(what, "expected an object")
    return found


@dataclass
class ChartRenderer:
    """Renders charts, a few at a time: each takes a process, and memory for its text."""

    helm: Helm
    settings: HelmSettings
    pods: PodSettings
    kube_version: str = ""
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(RENDERS_AT_ONCE))

    async def render(
        self, spec: InstanceSpec, chart: ChartOrder, namespace: str, mini_service: str
    ) -> tuple[list[Object], tuple[str, ...]]:
        """Return the objects to install and notes for people.

        Raises `ChartUnavailable`; else `ChartError` or ContractError with what is wrong with the chart.
        """
        policy = chosen_policy(self.settings.policy, chart.policy)
        packed = await Fetcher(self.settings.fetch).fetch(chart.url, chart.logins)
        versions = sorted({each.api_version for each in self.settings.extra_kinds})
        # The name becomes part of the objects' names: the same in all namespaces, so logs are alike.
        release = Release("function", namespace, chart.values, self.kube_version, versions)
        async with self._slots:
            text = await self.helm.template(packed, release)
            objects = await asyncio.to_thread(parse_manifests, text)
        target = Target(chart.service, chart.port or None, namespace, spec.order.requested_gpu_count, TAKEN)
        checked = check_chart(objects, policy, target)
        added = decoration(spec, self.pods, namespace, mini_service, checked.objects)
        return decorate(checked.objects, added), checked.notes


def decoration(
    spec: InstanceSpec, settings: PodSettings, namespace: str, mini_service: str, objects: Iterable[Object]
) -> Decoration:
    """Return what the platform adds to a chart's objects. Pure."""
    reserved = (MANAGED_BY, COMPONENT)
    labels = {name: value for name, value in names.labels(spec, settings).items() if name not in reserved}
    pulls = tuple(name_of(body) for _, body in pull_secrets(spec, namespace, mini_service, objects))
    return Decoration(
        mini_service,
        namespace,
        labels,
        names.annotations(spec, settings),
        _variables(spec, settings),
        node_affinity(spec),
        settings.tolerations,
        (*pulls, *settings.pull_secrets),
    )


def _variables(spec: InstanceSpec, settings: PodSettings) -> dict[str, str]:
    launch = spec.order.launch_specification.replace(container_image=settings.worker_image, worker_mode=None)
    order = spec.order.replace(launch_specification=launch)
    return function_variables(spec, parse_launch(order), replace(settings, collector_host=COLLECTOR))


def pull_secrets(
    spec: InstanceSpec, namespace: str, mini_service: str, objects: Iterable[Object]
) -> list[tuple[Kind, Object]]:
    """Return the logins of the account for the registries of a chart's images. Pure."""
    hosts = {
        registry_of(image)
        for each in objects
        for _, container in containers(member(pod_template(each), "spec") or {})
        if isinstance(image := container.get("image"), str)
    }
    logins = _launch(spec).logins
    labels = {MINI_SERVICE_LABEL: mini_service}
    found = [auths for each in logins if (auths := auths_for(each, hosts))]
    return [
        (SECRET, SECRET.new(f"{_PULL_SECRET}-{number}", namespace, labels, **login_members(auths)))
        for number, auths in enumerate(found)
    ]


def artifact_secret(spec: InstanceSpec, namespace: str, mini_service: str) -> list[tuple[Kind, Object]]:
    """Return what an init container of the chart downloads models and resources by, if any. Pure."""
    launch = _launch(spec)
    if not launch.has_artifacts:
        return []
    data = {name: encoded(text) for name, text in artifact_files(launch).items()}
    labels = {MINI_SERVICE_LABEL: mini_service}
    return [(SECRET, SECRET.new(ARTIFACTS, namespace, labels, type="Opaque", data=data))]


def _launch(spec: InstanceSpec) -> ContainerLaunch:
    """Return what an order says beside its chart, as for a container function."""
    launch = spec.order.launch_specification.replace(container_image="none", worker_mode=None)
    return parse_launch(spec.order.replace(launch_specification=launch))


def is_by_worker(objects: Iterable[Object]) -> bool:
    """Return whether a chart asks that only the worker's readiness counts (StatusByWorkerReadiness). Pure."""
    for each in objects:
        if (each.get("kind"), name_of(each)) == (CONFIG_MAP.kind, WORKLOAD_CONFIG):
            try:
                found = parse_manifests(str(member(each, "data", "config.yaml") or ""))
            except ChartError:
                return False
            return any(member(part, "featureFlags", "StatusByWorkerReadiness") is True for part in found)
    return False


WRONG_CHART = (ChartError, ContractError, Unsupported)
"""Errors of a chart or an order that another try would not change."""
