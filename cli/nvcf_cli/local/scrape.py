"""Files with which Prometheus finds everything of a local platform. They hold no secret.

Formats: https://prometheus.io/docs/prometheus/latest/configuration/configuration/
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nvcf_broker.files import private_directory, write_private
from nvcf_cli.local.state import Installation


def platform_targets(metrics: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the platform's own processes as target groups. Pure."""
    return [
        {"targets": [address], "labels": {"job": f"nvcf-{_component(name)}", "nvcf_process": name}}
        for name, address in metrics.items()
    ]


def _component(child: str) -> str:
    return "agent" if child.startswith("agent") else child


def configuration(installation: Installation) -> str:
    """Return Prometheus' configuration: it finds targets in files, which change with the instances."""
    # Prometheus takes an asterisk in the last part of a path only, so that each cluster is named.
    files = [folder / "metrics" / "*.json" for folder in _folders(installation)]
    # A JSON string is a YAML string.
    listed = "\n".join(f"          - {json.dumps(str(path))}" for path in files)
    return f"""\
# Each `nvcf up` writes this file anew. To use it: prometheus --config.file={installation.prometheus}
global:
  scrape_interval: 5s
scrape_configs:
  - job_name: nvcf
    file_sd_configs:
      - refresh_interval: 5s
        files:
{listed}
"""


def write_scrape_files(installation: Installation, metrics: Mapping[str, str]) -> None:
    """Write both. Raises OSError."""
    private_directory(installation.targets.parent)
    write_private(installation.targets, json.dumps(platform_targets(metrics), indent=1) + "\n")
    for name in metrics:
        if name.startswith("agent-"):
            private_directory(installation.cluster(name.removeprefix("agent-")) / "metrics")
    write_private(installation.prometheus, configuration(installation))


def _folders(installation: Installation) -> list[Path]:
    return [installation.data, *sorted((installation.data / "clusters").glob("*"))]


def instance_targets(installation: Installation) -> list[tuple[dict[str, str], str]]:
    """Return labels and addresses of the instances that agents list; unreadable files are skipped."""
    found: list[tuple[dict[str, str], str]] = []
    for folder in _folders(installation):
        try:
            groups = json.loads((folder / "metrics" / "instances.json").read_bytes())
            found += _flat(groups)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _flat(groups: Iterable[Mapping[str, Any]]) -> list[tuple[dict[str, str], str]]:
    return [(dict(group["labels"]), str(address)) for group in groups for address in group["targets"]]
