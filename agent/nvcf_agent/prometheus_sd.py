"""Where instances serve their metrics, as a file that Prometheus follows.

Format: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
"""

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nvcf_agent.state.managed_instance import Request
from nvcf_broker.files import private_directory, write_private

_log = logging.getLogger(__name__)

JOB = "nvcf-worker"


def document(requests: Iterable[Request], addresses: Mapping[str, str]) -> list[dict[str, Any]]:
    """One group of targets an instance that has a process; `addresses` by instance id, `host:port`."""
    return [
        {
            "targets": [addresses[request.id]],
            "labels": {
                "job": JOB,
                "nvcf_cluster_id": request.order.cluster_id,
                "nvcf_function_id": request.order.function_id,
                "nvcf_function_name": request.order.function_name,
                "nvcf_function_version_id": request.order.version_id,
                "nvcf_instance_id": request.id,
            },
        }
        for request in sorted(requests, key=lambda each: each.id)
        if request.has_process and request.id in addresses
    ]


class TargetsFile:
    """Keeps `path` up to date; a file that cannot be written is told once and holds nothing up."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._addresses: dict[str, str] = {}
        self._written: str | None = None
        self._failing = False

    def serves(self, instance_id: str, address: str | None) -> None:
        """An instance serves its metrics there, or nowhere."""
        if address is None:
            self._addresses.pop(instance_id, None)
        else:
            self._addresses[instance_id] = address

    async def update(self, requests: Iterable[Request]) -> None:
        """Write the file if it says something else."""
        text = json.dumps(document(requests, self._addresses), indent=1) + "\n"
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
