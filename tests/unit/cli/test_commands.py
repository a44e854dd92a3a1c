"""Decisions of the commands, without a platform."""

import json
import os
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_cli.api import problem_text
from nvcf_cli.catalog import find_function, require_function
from nvcf_cli.commands.calls import read_data
from nvcf_cli.commands.local import greeting
from nvcf_cli.deploying import (
    DeployRequest,
    find_file,
    find_python,
    name_from_file,
    parse_environment,
    split_target,
)
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.invoking import Call, guess_content_type, parse_headers, request_of
from nvcf_cli.keys import ensure_keys, read_key
from nvcf_cli.main import run
from nvcf_cli.parts import Addresses, ClusterPlan, agent_spec, autoscaler_spec, gateway_spec
from nvcf_cli.progress import judge
from nvcf_cli.scaling import Scale
from nvcf_cli.scrape import instance_targets, write_scrape_files
from nvcf_cli.screen import age
from nvcf_cli.state import (
    ChildState,
    Installation,
    PlatformState,
    only_platform,
    read_state,
    running_pid,
    write_state,
)
from nvcf_cli.supervisor import ChildSpec
from nvcf_cli.tailing import LogFile, readable
from nvcf_cli.target import find_target
from nvcf_cli.up import choose_http_port, choose_sessions
from nvcf_proto.models import NAME_PATTERN, ApiKey, Scope


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("f.py", ("f.py", None)),
        ("f.py:run", ("f.py", "run")),
        ("a:b/f.py", ("a:b/f.py", None)),
        (":run", (":run", None)),
    ],
)
def test_targets(text: str, expected: tuple[str, str | None]) -> None:
    assert split_target(text) == expected


@given(st.text(min_size=1, max_size=30).filter(lambda text: "/" not in text and "\0" not in text))
def test_a_name_made_of_a_file_is_always_one_the_platform_takes(stem: str) -> None:
    assert re.fullmatch(NAME_PATTERN, name_from_file(Path("/folder") / f"{stem}.py"))


def test_names_come_from_the_file_or_its_folder() -> None:
    assert name_from_file(Path("/code/hello.py")) == "hello"
    assert name_from_file(Path("/code/ocr/function.py")) == "ocr"
    assert name_from_file(Path("/my code.py")) == "my-code"


def test_environment_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "value")
    assert parse_environment(["A=1", "B=x=y", "C=", "HERE"]) == {
        "A": "1",
        "B": "x=y",
        "C": "",
        "HERE": "value",
    }
    for wrong in ("=1", "1A=2", "NOWHERE_AT_ALL"):
        with pytest.raises(UsageError, match="--env"):
            parse_environment([wrong])


def test_files_and_pythons_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        find_file(str(tmp_path))
    with pytest.raises(UsageError, match="--python"):
        find_python(str(tmp_path / "python"))
    assert find_python("sh").is_absolute()


def test_the_bodies_of_a_deployment() -> None:
    scale = Scale(3, 3, 2)
    request = DeployRequest("hello", Path("/code/f.py"), "run", Path("/bin/python"), {"A": "1"}, scale)
    process = request.version()["process"]
    assert process["workingDirectory"] == "/code"
    assert process["handler"] == "run"
    (specification,) = request.scale.deployment()["deploymentSpecifications"]
    assert (specification["minInstances"], specification["maxInstances"]) == (3, 3)


def record(state: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"state": state, "reason": reason, **more}


@pytest.mark.parametrize(
    ("records", "ready", "text", "failure"),
    [
        ([], 0, "waiting for an instance", None),
        ([record("STARTING")], 0, "starting", None),
        ([record("RUNNING"), record("STARTING")], 1, "starting (1 of 2 ready)", None),
        ([record("RUNNING"), record("RUNNING")], 2, "starting (2 of 2 ready)", None),
        ([record("FAILED", "crash: exit code 1\nboom")], 0, "failed", "exit code 1\nboom"),
        ([record("FAILED", "not-ready: not ready after 5 s")], 0, "failed", "not ready after 5 s"),
        ([record("FAILED", "exit code 1")], 0, "failed", "exit code 1"),
        ([record("FAILED", "capacity: 4 SIM wanted")], 0, "waiting: 4 SIM wanted", None),
        ([record("FAILED", "capacity: full"), record("RUNNING")], 1, "waiting: full", None),
        ([record("STARTING", "waiting: no token: HTTP 503")], 0, "waiting: no token: HTTP 503", None),
        ([record("TERMINATING", "fewer are wanted")], 0, "starting", None),
        ([record("STARTING", "exit code 1")], 0, "failed", "exit code 1"),
        ([record("PENDING", "no token: HTTP 503")], 0, "waiting: no token: HTTP 503", None),
    ],
)
def test_progress_of_a_deployment(
    records: list[dict[str, Any]], ready: int, text: str, failure: str | None
) -> None:
    progress = judge(records, max(1, len(records)))
    assert (progress.ready, progress.text, progress.failure) == (ready, text, failure)


FUNCTIONS = [
    {"id": "f1", "versionId": "v1", "name": "hello", "status": "ACTIVE", "createdAt": "2026-01-01T00:00:00Z"},
    {
        "id": "f1",
        "versionId": "v2",
        "name": "hello",
        "status": "INACTIVE",
        "createdAt": "2026-01-02T00:00:00Z",
    },
    {
        "id": "f2",
        "versionId": "v3",
        "name": "twin",
        "status": "INACTIVE",
        "createdAt": "2026-01-01T00:00:00Z",
    },
    {
        "id": "f3",
        "versionId": "v4",
        "name": "twin",
        "status": "INACTIVE",
        "createdAt": "2026-01-01T00:00:00Z",
    },
]


def test_functions_are_found_by_name_and_id() -> None:
    for wanted in ("hello", "f1", "v2"):
        found = find_function(FUNCTIONS, wanted)
        assert found is not None
        assert (found.id, len(found.versions), found.newest["versionId"]) == ("f1", 2, "v1")
    assert find_function(FUNCTIONS, "other") is None
    with pytest.raises(CliError, match="2 functions are called twin: use one of the ids f2, f3"):
        find_function(FUNCTIONS, "twin")
    with pytest.raises(CliError, match="there are: hello, twin"):
        require_function(FUNCTIONS, "other")
    with pytest.raises(CliError, match="nvcf deploy"):
        require_function([], "other")


def test_requests_of_calls() -> None:
    method, path, headers = request_of(Call("f1", b'{"a": 1}', timeout=90))
    assert (method, path) == ("POST", "/v2/nvcf/pexec/functions/f1")
    assert headers == {"Content-Type": "application/json", "NVCF-POLL-SECONDS": "90"}
    method, path, headers = request_of(Call("f1", method="get", path="items?x=1"))
    assert (method, path, headers["function-id"]) == ("GET", "/items?x=1", "f1")
    _, _, headers = request_of(Call("f1", b"x", {"content-type": "image/png", "accept": "a/b"}, stream=True))
    assert headers["content-type"] == "image/png"
    assert "Accept" not in headers
    assert "Content-Type" not in headers


def test_content_types_are_guessed() -> None:
    assert guess_content_type(b"[1]") == "application/json"
    assert guess_content_type(b"hello") == "text/plain; charset=utf-8"
    assert guess_content_type(b"\xff\xd8") == "application/octet-stream"


def test_headers_take_both_spellings() -> None:
    assert parse_headers(["A: b", "C=d:e", "F=g=h"]) == {"A": "b", "C": "d:e", "F": "g=h"}
    for wrong in ("A", "=b", "A=b\r\nX: y"):
        with pytest.raises(UsageError, match="--header"):
            parse_headers([wrong])


def test_request_bodies(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\0\1")
    assert read_data(f"@{tmp_path}/body") == b"\0\1"
    assert read_data("text") == b"text"
    assert read_data(None) == b""
    with pytest.raises(UsageError, match="cannot read"):
        read_data(f"@{tmp_path}/missing")


def test_problems_in_one_line() -> None:
    body = json.dumps({"title": "Bad Request", "detail": "name: missing\nsecond line"}).encode()
    assert problem_text(400, body) == "Bad Request: name: missing second line [HTTP 400]"
    assert "--key-file" in problem_text(401, b"")
    assert problem_text(502, b"<html>oops") == "<html>oops [HTTP 502]"


def test_ages() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    shown = [
        age(text, now) for text in ("2026-01-01T23:59:18Z", "2026-01-01T23:00:00Z", "2025-12-01T00:00:00Z")
    ]
    assert shown == ["42s", "1h", "32d"]
    assert age("nonsense", now) == ""


def test_log_lines_are_readable() -> None:
    line = json.dumps(
        {"time": "2026-01-01T10:11:12.123Z", "level": "info", "message": "hi", "request_id": "r"}
    )
    assert readable(line) == "10:11:12.123 INFO    hi  [request r]"
    for plain in ("hello", "{broken", '{"other": 1}', "[1]"):
        assert readable(plain) == plain


def test_a_log_is_read_from_its_end_and_followed_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "i.log"
    path.write_text("".join(f"line {number}\n" for number in range(30_000)))
    log = LogFile(path)
    assert log.last_lines(2) == ["line 29998", "line 29999"]
    with path.open("a") as file:
        file.write("more\nhal")
    assert log.new_lines() == ["more"]
    with path.open("a") as file:
        file.write("f\n")
    assert log.new_lines() == ["half"]
    path.rename(tmp_path / "i.log.1")
    assert log.new_lines() == []
    path.write_text("fresh\n")
    assert log.new_lines() == ["fresh"]
    assert LogFile(path).last_lines(0) == []


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
    assert [each.scopes for each in records] == [(Scope.ADMIN,), (Scope.AGENT,)]
    installation.agent_key.write_text("nonsense")
    with pytest.raises(CliError, match="delete it"):
        ensure_keys(installation)


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
        *(agent_spec(installation, addresses, plan, cluster, "info") for cluster in plan.ids()),
    ]
    for spec in specs:
        line = " ".join(spec.command)
        assert str(tmp_path / "c") in line
        assert not any(read_key(path) in line for path in (installation.admin_key, installation.agent_key))
    bare = Addresses("127.0.0.1:1", "127.0.0.1:2", "nats://broker:4222", None, None)
    assert "--nats-credentials" not in gateway_spec(installation, bare, "info").command
    assert [spec.name for spec in specs[2:]] == ["agent-local-1", "agent-local-2"]
    line = " ".join(specs[2].command)
    assert "--gpu SIM=4 --instance-type process,memory=1G,cpus=0.5" in line
    assert f"--data {tmp_path}/clusters/local-1" in line
    only = agent_spec(installation, addresses, ClusterPlan(), "local", "info")
    assert (only.name, f"--data {tmp_path} " in " ".join(only.command)) == ("agent", True)


def test_each_part_is_told_where_to_serve_its_metrics(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    metrics = {name: f"127.0.0.1:{port}" for port, name in enumerate(("gateway", "agent", "autoscaler"), 10)}
    addresses = Addresses("127.0.0.1:1", "127.0.0.1:2", "nats://127.0.0.1:3", None, None, metrics)
    bare = replace(addresses, metrics={})
    makers: list[Callable[[Addresses], ChildSpec]] = [
        lambda each: gateway_spec(installation, each, "info"),
        lambda each: agent_spec(installation, each, ClusterPlan(), "local", "info"),
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
    state = replace(state_of(tmp_path), sessions="127.0.0.1:8090")
    assert "sessions   127.0.0.1:8090" in greeting(state)
    assert PlatformState.from_dict(state.to_dict()) == state
    assert "  sessions " not in greeting(state_of(tmp_path))


def test_the_greeting_names_the_keys_file(tmp_path: Path) -> None:
    text = greeting(state_of(tmp_path))
    assert f"$(cat {tmp_path}/admin.key)" in text
    assert "http://127.0.0.1:1" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["deploy", "/does/not/exist.py"], 2, "there is no file"),
        (["deploy"], 2, "FILE[:HANDLER]"),
        (["nonsense"], 2, "nonsense"),
        (["functions"], 1, "nvcf up"),
        (["up", "--log-level", "loud"], 2, "loud"),
        (["up", "--callout-seed", "x"], 2, "--nats"),
        (["up", "--memory", "much"], 2, "512M"),
        (["up", "--gpus", "2", "--gpu-name", "CPU"], 2, "--gpu"),
        (["deploy", "f.py", "--min", "3", "--max", "2"], 2, "--max 2 is below --min 3"),
        (["deploy", "f.py", "-n", "1", "--max", "2"], 2, "--instances"),
        (["deploy", "f.py", "--gpus-per-instance", "2"], 2, "--gpu NAME"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("NVCF_HOME", str(tmp_path))
    monkeypatch.delenv("NVCF_URL", raising=False)
    assert run(arguments) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_every_command_explains_itself_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["up", "down", "status", "deploy", "undeploy", "functions", "instances", "clusters", "invoke"]
    for name in [*names, "logs", "events", "scaling"]:
        assert run([name, "--help"]) == 0
        said = capsys.readouterr().out
        assert "Examples:" in said
        assert f"nvcf {name}" in said
