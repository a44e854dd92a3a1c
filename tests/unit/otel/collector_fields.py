"""Members of the collector's components, from their documented config structs (release 0.161).

The collector refuses members that it does not know. `make collector-check` asks a real one; this table stands
in for it where there is none, and for the two exporters that cannot be built out of the registries.
"""

from __future__ import annotations

import re
from typing import Any

Fields = dict[str, Any]
"""Member names and theirs; None: a value or a list of values."""

_QUEUE: Fields = {"enabled": None, "num_consumers": None, "queue_size": None, "storage": None}
_RETRY: Fields = dict.fromkeys(("enabled", "initial_interval", "max_interval", "max_elapsed_time"))
_TLS: Fields = dict.fromkeys(("insecure", "ca_file", "cert_file", "key_file"))
_CLIENT: Fields = {
    "endpoint": None,
    "timeout": None,
    "headers": {".+": None},
    "tls": _TLS,
    "auth": {"authenticator": None},
}
_LASTING: Fields = {"retry_on_failure": _RETRY, "sending_queue": _QUEUE}
_SIGNALS: Fields = dict.fromkeys(("traces_endpoint", "metrics_endpoint", "logs_endpoint"))
_PIPELINE: Fields = dict.fromkeys(("receivers", "processors", "exporters"))

EXTENSIONS: Fields = {
    "health_check": {"endpoint": None},
    "file_storage": {"directory": None, "create_directory": None},
    "bearertokenauth": {"filename": None, "scheme": None},
    "basicauth": {"client_auth": {"username_file": None, "password_file": None}},
}
RECEIVERS: Fields = {
    "otlp": {"protocols": {"grpc": {"endpoint": None}, "http": {"endpoint": None}}},
    "prometheus": {"config": {"scrape_configs": None}},
}
PROCESSORS: Fields = {
    "memory_limiter": dict.fromkeys(("check_interval", "limit_mib", "spike_limit_mib")),
    "batch": dict.fromkeys(("send_batch_size", "send_batch_max_size", "timeout")),
    "resource": {"attributes": None},
    "filter": {"error_mode": None, "metrics": {"metric": None}},
    "tail_sampling": dict.fromkeys(("decision_wait", "num_traces", "policies")),
    "cumulativetodelta": {},
}
EXPORTERS: Fields = {
    "otlp": {**_CLIENT, **_LASTING},
    "otlphttp": {**_CLIENT, **_SIGNALS, **_LASTING},
    "prometheusremotewrite": {
        **_CLIENT,
        "resource_to_telemetry_conversion": {"enabled": None},
        "retry_on_failure": _RETRY,
        "remote_write_queue": dict.fromkeys(("enabled", "queue_size", "num_consumers")),
    },
    "splunk_hec": {**_CLIENT, "token": None, **_LASTING},
    "datadog": {
        **_CLIENT,
        "api": {"site": None, "key": None},
        "host_metadata": {"enabled": None},
        **_LASTING,
    },
    "azuremonitor": {"connection_string": None, "spaneventsenabled": None, "sending_queue": _QUEUE},
}
SERVICE: Fields = {
    "extensions": None,
    "telemetry": {"logs": {"level": None}, "metrics": {"level": None, "readers": None}},
    "pipelines": {"(logs|metrics|traces)": _PIPELINE},
}


def problems(configuration: dict[str, Any]) -> list[str]:
    """What the collector would not take: unknown components and members, references to what is not there."""
    found = []
    kinds = {
        "extensions": EXTENSIONS,
        "receivers": RECEIVERS,
        "processors": PROCESSORS,
        "exporters": EXPORTERS,
    }
    for kind, known in kinds.items():
        for name, members in configuration[kind].items():
            component = name.partition("/")[0]
            if component not in known:
                found.append(f"{kind}.{name}: unknown component")
            else:
                found += _unknown(f"{kind}.{name}", members, known[component])
    found += _unknown("service", configuration["service"], SERVICE)
    found += [f"unknown section {name}" for name in configuration.keys() - kinds.keys() - {"service"}]
    return found + _dangling(configuration)


def _unknown(path: str, members: dict[str, Any], known: Fields) -> list[str]:
    found = []
    for name, value in members.items():
        matching = [below for pattern, below in known.items() if re.fullmatch(pattern, name)]
        if not matching:
            found.append(f"{path}.{name}: unknown member")
        elif matching[0] is not None:
            found += (
                _unknown(f"{path}.{name}", value, matching[0])
                if isinstance(value, dict)
                else [f"{path}.{name}: members expected"]
            )
    return found


def _dangling(configuration: dict[str, Any]) -> list[str]:
    service = configuration["service"]
    found = [
        f"pipeline {pipeline} names {kind} {name}, which is not there"
        for pipeline, parts in service["pipelines"].items()
        for kind in ("receivers", "processors", "exporters")
        for name in parts[kind]
        if name not in configuration[kind]
    ]
    found += [
        f"extension {name} is not there"
        for name in service["extensions"]
        if name not in configuration["extensions"]
    ]
    for name, exporter in configuration["exporters"].items():
        named = [
            exporter.get("auth", {}).get("authenticator"),
            exporter.get("sending_queue", {}).get("storage"),
        ]
        found += [
            f"exporter {name} names extension {each}, which does not run"
            for each in named
            if each is not None and each not in service["extensions"]
        ]
    return found
