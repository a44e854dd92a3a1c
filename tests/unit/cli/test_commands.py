"""Decisions of the commands, without a platform."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_cli.api import problem_text
from nvcf_cli.catalog import find_function, require_function
from nvcf_cli.commands.calls import read_data
from nvcf_cli.deploying import (
    DeployRequest,
    find_file,
    find_python,
    name_from_file,
    parse_environment,
    progress_of,
    split_target,
)
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.invoking import Call, guess_content_type, parse_headers, request_of
from nvcf_cli.main import run
from nvcf_cli.scale import Scale
from nvcf_cli.screen import age
from nvcf_cli.tailing import LogFile, readable
from nvcf_proto.models import NAME_PATTERN


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
        ([record("FAILED", "unacknowledged: local is full")], 0, "waiting: local is full", None),
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
    progress = progress_of(records, max(1, len(records)))
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
    for name in [*names, "logs", "events", "scale", "scaling"]:
        assert run([name, "--help"]) == 0
        said = capsys.readouterr().out
        assert "Examples:" in said
        assert f"nvcf {name}" in said
    groups = {
        "cluster": ["register", "list", "show", "cordon", "drain", "uncordon", "rotate", "delete"],
        "function": ["create", "show", "update", "delete"],
        "key": ["create", "list", "delete"],
    }
    for group, commands in groups.items():
        for name in commands:
            assert run([group, name, "--help"]) == 0
            assert f"nvcf {group} {name}" in capsys.readouterr().out
