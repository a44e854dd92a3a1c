"""Service discovery for Prometheus: a file that lists where instances serve metrics.

Format: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
"""

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nvcf_agent.state import order as orders
from nvcf_agent.state.managed_instance import ManagedInstance
from nvcf_broker.files import private_directory, write_private

_log = logging.getLogger(__name__)

JOB = "nvcf-worker"


def document(
    instances: Iterable[ManagedInstance], addresses: Mapping[str, str], cluster: str
) -> list[dict[str, Any]]:
    """Return one target group per instance with a process; `addresses` are HOST:PORT by instance id."""
    return [
        {
            "targets": [addresses[instance.id]],
            "labels": {
                "job": JOB,
                "nvcf_cluster_id": cluster,
                "nvcf_function_id": orders.function_id(instance.order),
                "nvcf_function_name": instance.function_name,
                "nvcf_function_version_id": instance.version_id,
                "nvcf_instance_id": instance.id,
            },
        }
        for instance in sorted(instances, key=lambda each: each.id)
        if instance.has_process and instance.id in addresses
    ]


class PrometheusTargets:
    """Keeps the file `path` up to date. A failed write is logged once and blocks nothing."""

    def __init__(self, path: Path, cluster: str) -> None:
        self._path = path
        self._cluster = cluster
        self._addresses: dict[str, str] = {}
        self._written: str | None = None
        self._failing = False

    def set_address(self, instance_id: str, address: str | None) -> None:
        """Set where an instance serves metrics; None for nowhere."""
        if address is None:
            self._addresses.pop(instance_id, None)
        else:
            self._addresses[instance_id] = address

    async def update(self, instances: Iterable[ManagedInstance]) -> None:
        """Write the file if its content has changed."""
        text = json.dumps(document(instances, self._addresses, self._cluster), indent=1) + "\n"
        if text == self._written:
            return
        try:
            await asyncio.to_thread(self._write, text)
        except OSError as error:
            if not self._failing:
                _log.warning("cannot write %s: %s", self._path, error.strerror)
            self._failing = True
            return
        self._written, self._failing = text, False

    def _write(self, text: str) -> None:
        private_directory(self._path.parent)
        write_private(self._path, text)
