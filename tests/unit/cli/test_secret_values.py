"""Values of secrets on the command line: where they come from, and that no message has them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from nvcf_cli.catalog import Found
from nvcf_cli.commands.secret import versions_of
from nvcf_cli.deploying import DeployRequest, missing_secrets
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.secret_values import check_secret_name, login, named_files, parsed, read_value, secret_value


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"x", "x"), (b"x\n", "x"), (b"x\r\n", "x"), (b"x\n\n", "x\n"), (b" x ", " x "), (b"", "")],
)
def test_one_line_break_at_the_end_is_no_part_of_it(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "value"
    file.write_bytes(content)
    assert read_value(file, "x") == expected


def test_what_cannot_be_read_is_said_without_its_content(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_value(tmp_path / "none", "x")
    (tmp_path / "binary").write_bytes(b"hunter2\xff")
    with pytest.raises(UsageError, match="no UTF-8") as refused:
        read_value(tmp_path / "binary", "x")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(UsageError) as refused:
        parsed("hunter2", is_json=True)
    assert "hunter2" not in str(refused.value)
    assert parsed('{"a": 1}', is_json=True) == {"a": 1}
    assert parsed('{"a": 1}', is_json=False) == '{"a": 1}'


@pytest.mark.parametrize("name", ["", "a b", "-a", "n" * 49, "API_TOKEN=hunter2"])
def test_names_that_the_platform_refuses(name: str) -> None:
    with pytest.raises(UsageError, match="standard input or --from-file"):
        check_secret_name(name)


def test_secrets_of_files(tmp_path: Path) -> None:
    file = tmp_path / "a=b"
    file.write_text("x\n")
    assert named_files([f"TOKEN={file}"]) == [{"name": "TOKEN", "value": "x"}]
    for text in ("TOKEN", "TOKEN=", f"={file}"):
        with pytest.raises(UsageError):
            named_files([text])
    plain = tmp_path / "plain"
    plain.write_text("y\n")
    assert secret_value([str(plain)]) == "y"
    assert secret_value([f"one={plain}", f"two={file}"]) == {"one": "y", "two": "x"}
    with pytest.raises(UsageError, match="KEY=FILE"):
        secret_value([f"one={plain}", str(plain)])


def test_a_login() -> None:
    assert base64.b64decode(login("$oauthtoken", "päss:word")).decode() == "$oauthtoken:päss:word"


def versions(*shown: dict[str, Any]) -> Found:
    return Found("f", "hello", tuple({"id": "f", **each} for each in shown))


def test_which_versions_are_meant() -> None:
    old = {"versionId": "1", "status": "INACTIVE"}
    new = {"versionId": "2", "status": "ACTIVE"}
    newest = {"versionId": "3", "status": "INACTIVE"}
    ids = [each["versionId"] for each in versions_of(versions(old, new, newest), None)]
    assert ids == ["2"]
    assert [each["versionId"] for each in versions_of(versions(old, newest), None)] == ["3"]
    assert [each["versionId"] for each in versions_of(versions(old, new), "1")] == ["1"]
    with pytest.raises(CliError, match="no version 9"):
        versions_of(versions(old), "9")


def test_a_deployment_says_which_secrets_it_has_lost() -> None:
    given = ({"name": "A", "value": "hunter2"},)
    request = DeployRequest("hello", Path("/f.py"), None, Path("/python"), secrets=given)
    before = versions({"versionId": "1", "status": "ACTIVE", "secrets": ["A", "B"]})
    assert missing_secrets(before, request) == ("B",)
    assert missing_secrets(None, request) == ()
    assert missing_secrets(versions({"versionId": "1", "status": "ACTIVE"}), request) == ()
    assert request.version()["secrets"] == list(given)
    assert "hunter2" not in repr(request)
