"""Telemetry in the pods of container functions: a collector beside them, and certificates of exporters."""

from __future__ import annotations

from dataclasses import replace

from nvcf_agent.backends.environment import CollectorOrder, SecretTexts, WorkerTelemetry
from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP
from nvcf_agent.kubernetes.pods.collector import with_secrets
from nvcf_agent.kubernetes.pods.render import render
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetrySecret,
    TelemetryType,
)
from tests.unit.agent.kubernetes.pods import SETTINGS, spec
from tests.unit.agent.kubernetes.test_pod_rendering import ID, check, container, environment, secrets

ENDPOINT = TelemetryEndpoint(
    id=new_id(),
    nca_id="account",
    name="traces",
    endpoint="https://otel.example:4318",
    protocol=TelemetryProtocol.HTTP,
    provider=TelemetryProvider.OTEL_COLLECTOR,
    types=(TelemetryType.TRACES,),
    created_at=0.0,
    secret=TelemetrySecret("key"),
)


def test_a_collector_runs_beside_where_telemetry_asks_for_it() -> None:
    order = CollectorOrder({TelemetryType.TRACES: ENDPOINT}, SecretTexts({"key": "value\n"}), {"a": "b"})
    made = replace(spec(ID), telemetry=WorkerTelemetry(collector=order))
    settings = replace(SETTINGS, collector_image="otel/collector:1")
    objects = render(made, settings)
    check(objects)
    collector = container(objects, "byoo-otel-collector")
    assert collector["restartPolicy"] == "Always"
    config = next(body for kind, body in objects.before if kind is CONFIG_MAP)
    assert "14357" in config["data"]["collector.yaml"]
    assert environment(objects, "inference")["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "http://127.0.0.1:14357"
    assert secrets(objects)[f"0-sr-{ID}-collector"] == {"key": "value"}
    without = render(with_secrets(made, SETTINGS), settings)
    assert [each["name"] for each in without.pod["spec"]["containers"]] == ["inference", "utils"]
    assert "initContainers" not in without.pod["spec"]


def test_certificates_of_telemetry_are_where_its_variables_say() -> None:
    path = {"OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": "/var/secrets/own-clientKey"}
    made = replace(spec(ID), telemetry=WorkerTelemetry(variables=path, files={"own-clientKey": "PEM"}))
    objects = render(made, SETTINGS)
    check(objects)
    assert secrets(objects)[f"0-sr-{ID}-secrets"] == {"own-clientKey": "PEM"}
    for name in ("inference", "utils"):
        assert environment(objects, name).items() >= path.items()
        mounts = {each["mountPath"]: each["name"] for each in container(objects, name)["volumeMounts"]}
        assert mounts["/var/secrets"] == "secret-data"
