"""Resource attributes: the identity of a process, sent with all its telemetry. Pure."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from importlib import metadata

from nvcf_otel.cleaning import clean_attributes
from nvcf_otel.settings import Settings

DISTRIBUTION = "nvcf-worker"
NAMESPACE = "nvcf"


def resource_attributes(
    component: str, instance_id: str, attributes: Mapping[str, str], settings: Settings
) -> dict[str, str | int]:
    """Return the attributes of OpenTelemetry's resource conventions.

    Those of the environment take precedence. `attributes` may name the service. The default is `nvcf-` and
    the component.
    """
    found: dict[str, str | int] = {
        "service.name": f"nvcf-{component}",
        "service.namespace": NAMESPACE,
        "service.instance.id": instance_id,
        "service.version": version(),
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
    }
    found |= {key: value for key, value in attributes.items() if value}
    found |= settings.resource
    if settings.service_name:
        found["service.name"] = settings.service_name
    # Variables may hold any bytes.
    return clean_attributes(found)


def version() -> str:
    """Return the version of this distribution."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
