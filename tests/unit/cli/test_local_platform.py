"""Decisions of nvcf up, without a platform: state, keys, command lines, ports."""

import json
import os
import re
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from nvcf_cli.access import find_target, read_key
from nvcf_cli.commands.local import greeting
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.local.platform import choose_http_port, choose_sessions, ensure_keys, ensure_sealing_key
from nvcf_cli.local.processes import Addresses, ClusterPlan, agent_spec, autoscaler_spec, gateway_spec
from nvcf_cli.local.scrape import instance_targets, write_scrape_files
from nvcf_cli.local.state import (
    ChildState,
    Installation,
    PlatformState,
    only_platform,
    read_state,
    running_pid,
    write_state,
)
from nvcf_cli.local.supervisor import ChildSpec
from nvcf_proto.models import ApiKey, Scope


def state_of(tmp_path: Path) -> PlatformState:
    return PlatformState(
        pid=os.getpid(),
        url="http://127.0.0.1:1",
        grpc="127.0.0.1:2",
        nats="nats://127.0.0.1:3",
        key_file=str(tmp_path / "admin.key"),
        data=str(tmp_path),
        started_at=1.0,
        children={"gateway": ChildState(7, "running", 2)},
    )


def test_only_the_holder_of_the_lock_counts_as_running(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "data")
    assert running_pid(installation) is None
    with only_platform(installation):
        assert read_state(installation) is None
        write_state(installation, state_of(tmp_path))
        assert running_pid(installation) == os.getpid()
        assert read_state(installation) == state_of(tmp_path)
        with pytest.raises(CliError, match="already up"), only_platform(installation):
            pass
    assert running_pid(installation) is None
    assert not installation.state.exists()


def test_keys_are_made_once_and_recorded_as_hashes(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    ensure_keys(installation)
    first = read_key(installation.admin_key)
    ensure_keys(installation)
    assert read_key(installation.admin_key) == first
    text = installation.bootstrap_keys.read_text()
    assert first not in text
    records = [ApiKey.from_dict(value) for value in json.loads(text)]
    assert [each.scopes for each in records] == [(Scope.ADMIN, Scope.OPERATOR)]
    installation.admin_key.write_text("nonsense")
    with pytest.raises(CliError, match="delete it"):
        ensure_keys(installation)


def test_the_sealing_key_is_made_once_and_never_beside_others(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    ensure_sealing_key(installation)
    (made,) = installation.sealing_keys.iterdir()
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert stat.S_IMODE(installation.sealing_keys.stat().st_mode) == 0o700
    text = made.read_bytes()
    ensure_sealing_key(installation)
    assert made.read_bytes() == text
    made.rename(made.with_name("rotated.key"))
    ensure_sealing_key(installation)
    assert [each.name for each in installation.sealing_keys.iterdir()] == ["rotated.key"]


def test_which_platform_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NVCF_URL", "NVCF_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    installation, key = Installation(tmp_path), tmp_path / "key"
    key.write_text("the key\n".replace(" ", "-"))
    with pytest.raises(CliError, match="nvcf up"):
        find_target(installation, None, None)
    with pytest.raises(UsageError, match="NVCF_API_KEY"):
        find_target(installation, "http://h", None)
    with pytest.raises(UsageError, match="http://"):
        find_target(installation, "h:80", key)
    assert find_target(installation, "http://h/", key).url == "http://h"
    monkeypatch.setenv("NVCF_URL", "https://there")
    monkeypatch.setenv("NVCF_API_KEY", "k")
    target = find_target(installation, None, None)
    assert (target.url, target.key) == ("https://there", "k")


def test_command_lines_of_the_parts_hold_files_and_no_secrets(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    ensure_keys(installation)
    addresses = Addresses("127.0.0.1:1", "127.0.0.1:2", "nats://127.0.0.1:3", tmp_path / "c", tmp_path / "s")
    plan = ClusterPlan(2, gpus=4, memory="1G", cpus=0.5)
    specs = [
        gateway_spec(installation, addresses, "info"),
        autoscaler_spec(installation, addresses, "info"),
        *(agent_spec(installation, addresses, plan, name, f"id-of-{name}", "info") for name in plan.names()),
    ]
    for spec in specs:
        line = " ".join(spec.command)
        assert read_key(installation.admin_key) not in line
        # An agent has no broker credentials: its key is all.
        assert ("--nats-credentials" in line) is not spec.name.startswith("agent")
    bare = Addresses("127.0.0.1:1", "127.0.0.1:2", "nats://broker:4222", None, None)
    assert "--nats-credentials" not in gateway_spec(installation, bare, "info").command
    assert [spec.name for spec in specs[2:]] == ["agent-local-1", "agent-local-2"]
    line = " ".join(specs[2].command)
    assert "--gpu SIM=4 --instance-type process,memory=1G,cpus=0.5" in line
    folder = tmp_path / "clusters" / "local-1"
    assert f"--cluster-id id-of-local-1 --key-file {folder}/agent.key --data {folder} " in line
    only = agent_spec(installation, addresses, ClusterPlan(), "local", "id", "info")
    assert (only.name, f"--data {tmp_path} " in " ".join(only.command)) == ("agent", True)


def test_each_part_is_told_where_to_serve_its_metrics(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    metrics = {name: f"127.0.0.1:{port}" for port, name in enumerate(("gateway", "agent", "autoscaler"), 10)}
    addresses = Addresses("127.0.0.1:1", "127.0.0.1:2", "nats://127.0.0.1:3", None, None, metrics)
    bare = replace(addresses, metrics={})
    makers: list[Callable[[Addresses], ChildSpec]] = [
        lambda each: gateway_spec(installation, each, "info"),
        lambda each: agent_spec(installation, each, ClusterPlan(), "local", "id", "info"),
        lambda each: autoscaler_spec(installation, each, "info"),
    ]
    for make, address in zip(makers, metrics.values(), strict=True):
        assert f"--metrics {address}" in " ".join(make(addresses).command)
        assert "--metrics" not in make(bare).command
    assert "--worker-metrics" in makers[1](addresses).command
    assert "--worker-metrics" not in makers[1](bare).command


def test_prometheus_finds_processes_and_instances_of_all_clusters(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    write_scrape_files(installation, {"gateway": "127.0.0.1:1", "agent-local-2": "127.0.0.1:2"})
    groups = json.loads(installation.targets.read_text())
    assert [(each["targets"], each["labels"]["job"]) for each in groups] == [
        (["127.0.0.1:1"], "nvcf-gateway"),
        (["127.0.0.1:2"], "nvcf-agent"),
    ]
    text = installation.prometheus.read_text()
    assert f'"{tmp_path}/metrics/*.json"' in text
    assert f'"{tmp_path}/clusters/local-2/metrics/*.json"' in text
    assert instance_targets(installation) == []
    labels = {"nvcf_function_name": "hello"}
    for folder, address in ((tmp_path, "127.0.0.1:3"), (tmp_path / "clusters" / "local-2", "127.0.0.1:4")):
        (folder / "metrics").mkdir(parents=True, exist_ok=True)
        listed = [{"targets": [address], "labels": labels}]
        (folder / "metrics" / "instances.json").write_text(json.dumps(listed))
    assert instance_targets(installation) == [(labels, "127.0.0.1:3"), (labels, "127.0.0.1:4")]
    (tmp_path / "metrics" / "instances.json").write_text("half writt")
    assert instance_targets(installation) == [(labels, "127.0.0.1:4")]


def test_ports() -> None:
    assert choose_http_port(0) > 0
    assert choose_http_port(None) > 0


def test_the_address_of_sessions() -> None:
    assert choose_sessions(None) is None
    assert choose_sessions("[::1]:8090") == "[::1]:8090"
    assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d+", choose_sessions(":0") or "")
    for wrong in ("8090", "host", "host:port", "host:65536", "host:"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            choose_sessions(wrong)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CliError, match="--sessions"):
            choose_sessions(f"127.0.0.1:{taken.getsockname()[1]}")


def test_where_sessions_come_in_is_told_to_the_gateway_and_to_the_user(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    with_sessions = Addresses("a:1", "a:2", "nats://a:3", None, None, sessions="127.0.0.1:8090")
    assert "--sessions 127.0.0.1:8090" in " ".join(gateway_spec(installation, with_sessions, "info").command)
    bare = Addresses("a:1", "a:2", "nats://a:3", None, None)
    assert "--sessions" not in gateway_spec(installation, bare, "info").command
    state = msgspec.structs.replace(state_of(tmp_path), sessions="127.0.0.1:8090")
    assert "sessions   127.0.0.1:8090" in greeting(state)
    assert msgspec.convert(state.to_dict(), PlatformState) == state
    assert "  sessions " not in greeting(state_of(tmp_path))


def test_the_greeting_names_the_keys_file(tmp_path: Path) -> None:
    text = greeting(state_of(tmp_path))
    assert f"$(cat {tmp_path}/admin.key)" in text
    assert "http://127.0.0.1:1" in text
