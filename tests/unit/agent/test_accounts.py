"""What instances get of their accounts' wishes about telemetry."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from nvcf_agent.accounts import AccountTelemetry, texts_of, without_destination
from nvcf_agent.backends.collector import FILE, run_collector, write_configuration
from nvcf_agent.backends.environment import (
    CollectorOrder,
    InstanceOf,
    SecretFiles,
    WorkerTelemetry,
    worker_environment,
)
from nvcf_agent.backends.process import ProcessBackend
from nvcf_agent.errors import StartError
from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Share
from nvcf_broker.process import free_port
from nvcf_otel.byoo import account_folder
from nvcf_proto.icms.messages import encode_base64
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    TelemetryAuth,
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetrySecret,
    TelemetrySettings,
    TelemetryType,
)
from tests.support.waiting import eventually
from tests.unit.agent.orders import order
from tests.unit.agent.test_environment import PLACES, SOURCE, SPEC

OPERATOR = WorkerTelemetry(
    metrics=True,
    variables={
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://operator:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=operators",
        "OTEL_METRIC_EXPORT_INTERVAL": "5000",
    },
)
GENERIC = TelemetryEndpoint(
    id=new_id(),
    name="own",
    nca_id="one",
    endpoint="https://own.example.com:4317",
    protocol=TelemetryProtocol.GRPC,
    provider=TelemetryProvider.OTEL_COLLECTOR,
    types=tuple(TelemetryType),
    created_at=0.0,
    secret=TelemetrySecret("own"),
)
GRAFANA = GENERIC.replace(
    id=new_id(),
    name="grafana",
    provider=TelemetryProvider.GRAFANA_CLOUD,
    protocol=TelemetryProtocol.HTTP,
    endpoint="https://otlp-gateway.example.com/otlp",
    secret=TelemetrySecret("grafana"),
)


def message(**chosen: TelemetryEndpoint | object) -> str:
    """Return `telemetries` of a launch specification."""
    listed = {
        f"{kind}Telemetry": each.to_dict() if isinstance(each, TelemetryEndpoint) else each
        for kind, each in chosen.items()
    }
    return encode_base64(json.dumps({"telemetries": listed}))


def account(secrets: Path) -> Path:
    """Where the secrets of the function's account are."""
    folder = secrets / "one"
    folder.mkdir(exist_ok=True)
    return folder


def of(folder: Path, telemetries: str | None, mounted: str | None = None) -> WorkerTelemetry:
    accounts = AccountTelemetry(folder, OPERATOR, "local", mounted=mounted)
    made = order("r", nca_id="one", telemetries=telemetries, variables={"FUNCTION_NAME": "f"})
    return asyncio.run(accounts.of(transitions.accepted(made, Share(), 1.0)))


def test_a_function_without_a_wish_gets_the_operators(tmp_path: Path) -> None:
    assert of(tmp_path, None) == OPERATOR


@pytest.mark.parametrize("text", ["%", encode_base64("[]"), encode_base64('{"telemetries": 5}')])
def test_a_wish_that_cannot_be_read_sends_nothing_to_the_operator(tmp_path: Path, text: str) -> None:
    assert of(tmp_path, text).variables == without_destination(OPERATOR.variables)


def test_nvidias_members_are_enough(tmp_path: Path) -> None:
    bare = {"protocol": "GRPC", "provider": "OTEL_COLLECTOR", "endpoint": "http://c:4317", "name": "own"}
    given = of(tmp_path, message(traces=bare))
    assert given.variables["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "http://c:4317"


def test_the_sdk_sends_straight_where_it_can_with_the_secret_from_its_file(tmp_path: Path) -> None:
    (account(tmp_path) / "own").write_text("token\n")
    given = of(tmp_path, message(traces=GENERIC))
    assert given.variables["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "https://own.example.com:4317"
    assert given.variables["OTEL_EXPORTER_OTLP_TRACES_HEADERS"] == "authorization=Bearer%20token"
    assert given.variables["OTEL_METRIC_EXPORT_INTERVAL"] == "5000"
    assert given.metrics
    assert given.collector is None
    # The account's own backend must not be given what is the operator's.
    assert "operator" not in str(given)


def test_certificates_are_given_to_instances_that_cannot_read_the_agents_files(tmp_path: Path) -> None:
    for name in ("own-clientCert", "own-clientKey", "own-caFile"):
        (account(tmp_path) / name).write_text(f"{name} in PEM form\n")
    settings = TelemetrySettings(auth=TelemetryAuth.MTLS, private_ca=True)
    wish = message(traces=GENERIC.replace(settings=settings))
    prefix = "OTEL_EXPORTER_OTLP_TRACES_"
    given = of(tmp_path, wish)
    assert given.variables[f"{prefix}CLIENT_KEY"] == str(tmp_path / "one" / "own-clientKey")
    assert not given.files
    mounted = of(tmp_path, wish, mounted="/var/secrets")
    paths = [mounted.variables[prefix + name] for name in ("CLIENT_CERTIFICATE", "CLIENT_KEY", "CERTIFICATE")]
    assert paths == [f"/var/secrets/own-{key}" for key in ("clientCert", "clientKey", "caFile")]
    assert mounted.files == {path.rsplit("/", 1)[1]: f"{path[13:]} in PEM form\n" for path in paths}
    assert "PEM" not in repr(mounted)


def test_what_needs_a_collector_gets_one(tmp_path: Path) -> None:
    for name in ("own", "grafana-instanceId", "grafana-apiKey"):
        (account(tmp_path) / name).write_text("x")
    given = of(tmp_path, message(metrics=GRAFANA, traces=GENERIC))
    assert given.collector is not None
    assert given.collector.endpoints.keys() == {TelemetryType.METRICS, TelemetryType.TRACES}
    assert given.collector.resource["nvcf.instance.id"] == "0-sr-r"
    assert given.variables == {"OTEL_METRIC_EXPORT_INTERVAL": "5000"}


def test_what_cannot_be_used_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (account(tmp_path) / "own").write_text("token")
    with caplog.at_level(logging.WARNING):
        given = of(tmp_path, message(logs=GENERIC, metrics=GRAFANA, traces="nonsense"))
    assert given.variables["OTEL_METRICS_EXPORTER"] == "none"
    assert given.variables["OTEL_TRACES_EXPORTER"] == "none"
    assert "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT" in given.variables
    assert (
        f"metrics of f are left out: {tmp_path / 'one'} has no grafana-instanceId, grafana-apiKey"
        in caplog.text
    )
    assert "traces of f are left out" in caplog.text


@pytest.mark.parametrize("telemetry", ["direct", "through a collector"])
def test_a_secret_that_cannot_be_read_costs_its_telemetry_and_not_the_function(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, telemetry: str
) -> None:
    """Certificates come in a binary form, too; an agent that stumbled over one would end all instances."""
    for name in ("own", "grafana-instanceId", "grafana-apiKey"):
        (account(tmp_path) / name).write_bytes(b"\xff\xfe")
    endpoint = GENERIC if telemetry == "direct" else GRAFANA
    with caplog.at_level(logging.WARNING):
        given = of(tmp_path, message(traces=endpoint))
    assert given.collector is None
    assert given.variables == without_destination(OPERATOR.variables)
    assert "traces of f are left out" in caplog.text
    assert "no text" in caplog.text


def test_what_the_operator_switched_off_for_itself_is_not_off_for_an_account(tmp_path: Path) -> None:
    assert without_destination({"OTEL_TRACES_EXPORTER": "none", "OTEL_BSP_SCHEDULE_DELAY": "1"}) == {
        "OTEL_BSP_SCHEDULE_DELAY": "1"
    }


@pytest.mark.parametrize("place", [".", "two", "one/.."])
def test_the_secret_of_another_account_is_out_of_reach(tmp_path: Path, place: str) -> None:
    account(tmp_path)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "own").write_text("theirs")
    assert of(tmp_path, message(traces=GENERIC)).variables == without_destination(OPERATOR.variables)


def test_no_accounts_folder_is_elsewhere() -> None:
    assert [account_folder(each) for each in ("a-1_B.c", "..", ".", "a/../b", "")] == [
        "a-1_B.c",
        "%2E%2E",
        "%2E",
        "a%2F..%2Fb",
        "%",
    ]


def test_nothing_usable_sends_nothing_anywhere(tmp_path: Path) -> None:
    given = of(tmp_path, message(metrics=GRAFANA))
    assert given.variables == without_destination(OPERATOR.variables)
    assert given.collector is None


def test_the_worker_sends_to_its_collector_unless_the_function_says_otherwise() -> None:
    wish = CollectorOrder({TelemetryType.TRACES: GRAFANA}, SecretFiles(Path("/secrets")), {})
    spec = replace(SPEC, telemetry=WorkerTelemetry(collector=wish))
    places = replace(PLACES, collector="127.0.0.1:5")
    made = worker_environment(spec, SOURCE, places, {}, None)
    assert made["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:5"
    assert made["OTEL_LOGS_EXPORTER"] == "none"
    own = SOURCE.replace(environment={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://mine"})
    assert worker_environment(spec, own, places, {}, None)["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://mine"


def test_a_collector_that_cannot_be_set_up_keeps_no_function_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The secret may be removed between the check and the copy."""
    wish = CollectorOrder({TelemetryType.TRACES: GRAFANA}, SecretFiles(tmp_path / "nothing"), {})
    spec = replace(SPEC, telemetry=WorkerTelemetry(collector=wish))
    with caplog.at_level(logging.WARNING):
        assert ProcessBackend(tmp_path)._make_collector(spec, tmp_path, free_port) is None
    assert "is left out" in caplog.text


def collector_order(folder: Path) -> CollectorOrder:
    (folder / "grafana-instanceId").write_text("12345\n")
    (folder / "grafana-apiKey").write_text("key$1\n")
    return CollectorOrder({TelemetryType.TRACES: GRAFANA}, SecretFiles(folder), {"nvcf.instance.id": "i"})


def test_the_configuration_and_its_secrets_lie_beside_the_instance_for_its_owner_alone(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    ports = iter(range(20_000, 20_010))
    placement = write_configuration(collector_order(tmp_path), home, lambda: next(ports))
    configuration = yaml.safe_load((home / FILE).read_text())
    listens = configuration["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    assert listens == f"127.0.0.1:{placement.grpc_port}"
    assert (home / "secrets" / "grafana-apiKey").read_text() == "key$1"
    for path in (home / FILE, home / "secrets" / "grafana-apiKey"):
        assert path.stat().st_mode & 0o077 == 0
        assert "key$1" not in (home / FILE).read_text()


async def test_a_collector_that_ends_is_started_again_and_ends_with_its_instance(tmp_path: Path) -> None:
    program = tmp_path / "otelcol"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, sys, time\n"
        "assert sys.argv[1:] == ['--config', 'HOME/collector.yaml'.replace('HOME', os.getcwd())]\n"
        "seen = pathlib.Path('seen')\n"
        "first = not seen.exists()\n"
        "seen.write_text(str(os.getpid()))\n"
        "time.sleep(0 if first else 600)\n"
    )
    program.chmod(0o700)
    home = tmp_path / "home"
    home.mkdir()
    running = asyncio.create_task(run_collector(program, home))
    seen = home / "seen"
    pids: set[str] = set()

    def twice() -> bool:
        if seen.exists() and seen.read_text():
            pids.add(seen.read_text())
        return len(pids) == 2

    await eventually(twice, "it was started a second time")
    last = int(seen.read_text())
    running.cancel()
    await asyncio.wait({running})
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


async def test_a_collector_trusts_the_authorities_that_its_machine_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And sees nothing else of the agent's environment."""
    monkeypatch.setenv("SSL_CERT_FILE", "/own/ca.pem")
    monkeypatch.setenv("NVCF_API_KEY", "the agent's")
    program, seen = tmp_path / "otelcol", tmp_path / "seen"
    program.write_text(f"#!/bin/sh\nenv > {seen}.new\nmv {seen}.new {seen}\nsleep 600\n")
    program.chmod(0o700)
    running = asyncio.create_task(run_collector(program, tmp_path))
    await eventually(seen.exists, "it runs")
    running.cancel()
    await asyncio.wait({running})
    assert "SSL_CERT_FILE=/own/ca.pem\n" in seen.read_text()
    assert "NVCF_API_KEY" not in seen.read_text()


async def test_a_collector_that_is_not_there_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = asyncio.create_task(run_collector(tmp_path / "nothing", tmp_path))
    await eventually(lambda: "does not start: cannot start" in caplog.text, "it was said")
    running.cancel()
    await asyncio.wait({running})


def of_given(folder: Path, kept: Path, telemetries: str, given: dict[str, Any]) -> WorkerTelemetry:
    async def fetch(_: InstanceOf) -> dict[str, Any]:
        if not given:
            raise StartError("the gateway is away")
        return given

    accounts = AccountTelemetry(folder, OPERATOR, "local", fetch, kept)
    made = order("r", nca_id="one", telemetries=telemetries, variables={"FUNCTION_NAME": "f"})
    return asyncio.run(accounts.of(transitions.accepted(made, Share(), 1.0)))


def test_secrets_that_were_given_to_the_platform_win_and_are_files_of_the_agent(tmp_path: Path) -> None:
    (account(tmp_path) / "own").write_text("of the operator")
    kept = tmp_path / "kept"
    chosen = message(traces=GENERIC)
    given = of_given(tmp_path, kept, chosen, {"own": "of the account\n"})
    assert given.variables["OTEL_EXPORTER_OTLP_TRACES_HEADERS"] == "authorization=Bearer%20of%20the%20account"
    assert (kept / "one" / "own").stat().st_mode & 0o777 == 0o600
    # Of another endpoint, or none: the operator's file serves.
    for secrets in ({"other": "x"}, {}):
        given = of_given(tmp_path, kept, chosen, secrets)
        headers = given.variables["OTEL_EXPORTER_OTLP_TRACES_HEADERS"]
        assert headers == "authorization=Bearer%20of%20the%20operator"


def test_keys_of_a_given_secret_reach_the_collector(tmp_path: Path) -> None:
    kept, home = tmp_path / "kept", tmp_path / "home"
    home.mkdir()
    secret = {"grafana": {"instanceId": "12345", "apiKey": "given-key"}}
    given = of_given(tmp_path, kept, message(metrics=GRAFANA), secret)
    assert given.collector is not None
    write_configuration(given.collector, home, free_port)
    assert (home / "secrets" / "grafana-apiKey").read_text() == "given-key"
    assert "given-key" not in (home / FILE).read_text()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 200, "a\0b"])
def test_what_comes_from_outside_is_no_path(name: str) -> None:
    assert texts_of({name: "x", "own": {"key": "z", "number": 7}, "more": 7}) == {"own-key": "z"}


@pytest.mark.parametrize("key", ["../x", "a/b", "x" * 200, "a\0b"])
def test_a_key_from_outside_is_no_path(key: str) -> None:
    assert texts_of({"own": {key: "y"}}) == {}
