"""The collector of an instance's telemetry, which runs in the pod of its worker."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from nvcf_agent.backends.environment import CollectorOrder, InstanceSpec, SecretTexts
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.kubernetes.pods.variables import PLACEMENT
from nvcf_agent.state import order as orders
from nvcf_otel.byoo import Placement, secret_files
from nvcf_otel.byoo.providers import as_referenced, referenced_files
from nvcf_proto.models import TelemetryEndpoint, TelemetryType

_log = logging.getLogger(__name__)


def collector_image(spec: InstanceSpec, settings: PodSettings) -> str:
    """Return the image of an instance's collector; empty without one. Pure."""
    if spec.telemetry.collector is None:
        return ""
    return orders.environment(spec.order).get("BYOO_OTEL_COLLECTOR_CONTAINER") or settings.collector_image


def with_secrets(spec: InstanceSpec, settings: PodSettings) -> InstanceSpec:
    """Return an instance whose collector has its secrets, as texts. Blocking.

    Telemetry never prevents a start: without an image for it, or a secret, an instance has no collector.
    """
    order = spec.telemetry.collector
    if order is None:
        return spec
    found = None
    try:
        if collector_image(spec, settings):
            names = {name for each in order.endpoints.values() for name in secret_files(each)}
            found = replace(order, secrets=SecretTexts({name: order.secrets.read(name) for name in names}))
        else:
            _log.warning("telemetry of instance %s needs a collector: --collector-image", spec.instance_id)
    except (OSError, UnicodeDecodeError) as error:
        _log.warning("telemetry of instance %s is left out: %s", spec.instance_id, error)
    return replace(spec, telemetry=replace(spec.telemetry, collector=found))


def mounted_files(order: CollectorOrder) -> dict[str, str]:
    """Return the files that a collector reads its secrets from. Pure."""
    found: dict[str, str] = {}
    for endpoint in order.endpoints.values():
        referenced = referenced_files(endpoint)
        for name in secret_files(endpoint):
            text = order.secrets.read(name)
            found[name] = as_referenced(text) if name in referenced else text.strip()
    return found


def placement_of(order: CollectorOrder, settings: PodSettings) -> Placement:
    """Return where a collector listens: to its pod alone, or to others that know it by a name. Pure."""
    host = PLACEMENT.host if settings.collector_host == PLACEMENT.host else "0.0.0.0"  # noqa: S104
    return replace(PLACEMENT, host=host, resource=order.resource)


def collector_record(order: CollectorOrder | None) -> object:
    """Return a collector with its secrets as JSON. Pure."""
    if order is None:
        return None
    names = {name for each in order.endpoints.values() for name in secret_files(each)}
    return {
        "endpoints": {kind.value: each.to_dict() for kind, each in order.endpoints.items()},
        "secrets": {name: order.secrets.read(name) for name in names},
        "resource": dict(order.resource),
    }


def collector_of(record: Mapping[str, Mapping[str, object]] | None) -> CollectorOrder | None:
    """Return the collector of a record. Raises InvalidRecord, LookupError and TypeError. Pure."""
    if record is None:
        return None
    listed = record["endpoints"].items()
    return CollectorOrder(
        {TelemetryType(kind): TelemetryEndpoint.from_dict(each) for kind, each in listed},
        SecretTexts({name: str(text) for name, text in record["secrets"].items()}),
        {name: str(value) for name, value in record["resource"].items()},
    )
