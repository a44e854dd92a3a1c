"""The allow list of interpreters and folders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nvcf_agent.backends.allowed import Allowed, allow_list
from nvcf_agent.errors import AgentError, NotAllowed
from nvcf_proto.models import ProcessSource


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("project", ".ssh", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "out").symlink_to("/usr/lib")
    (tmp_path / "project" / "in").symlink_to(tmp_path / "project")
    return tmp_path


def source(file: Path | str, folder: Path | str | None = None, python: str = sys.executable) -> ProcessSource:
    return ProcessSource(python=python, file=str(file), working_directory=str(folder or Path(file).parent))


@pytest.mark.parametrize("file", ["project/f.py", "f.py", "project/in/f.py", "project/.venv/f.py"])
def test_what_lies_in_an_allowed_folder_may_run(home: Path, file: str) -> None:
    allowed = Allowed((Path(sys.executable),), (home,), (home / "data",), home)
    allowed.check(source(home / file))
    # An interpreter of a virtual environment is a link to one outside.
    (home / "project" / "python").symlink_to("/bin/sh")
    allowed.check(source(home / file, python=str(home / "project" / "python")))


PRIVATE = "in a folder of the platform"
HIDDEN = "in a hidden folder of the home .* --allow-folder"
ELSEWHERE = "not in an allowed folder .* --allow-folder"


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("data/f.py", PRIVATE),
        ("data/clusters/x/f.py", PRIVATE),
        ("project/../data/f.py", PRIVATE),
        (".ssh/f.py", HIDDEN),
        ("out/f.py", ELSEWHERE),
        ("../f.py", ELSEWHERE),
    ],
)
def test_everything_else_is_refused_with_the_reason(home: Path, file: str, why: str) -> None:
    allowed = Allowed((Path(sys.executable),), (home,), (home / "data",), home)
    with pytest.raises(NotAllowed, match=why):
        allowed.check(source(home / file))
    with pytest.raises(NotAllowed, match=why):
        allowed.check(source(home / "f.py", (home / file).parent))


@pytest.mark.parametrize("python", ["/bin/sh", "/usr/bin/env", "data/python", "project/../.ssh/python"])
def test_another_interpreter_is_refused(home: Path, python: str) -> None:
    allowed = Allowed((Path(sys.executable),), (home,), (home / "data",), home)
    with pytest.raises(NotAllowed, match="--allow-python"):
        allowed.check(source(home / "f.py", python=str(home / python)))


def test_options_replace_the_default_folders_and_add_to_the_interpreters(home: Path) -> None:
    allowed = allow_list([Path("/bin/sh")], [home / ".ssh"], [home / "data"])
    allowed.check(source(home / ".ssh" / "f.py", python="/bin/sh"))
    allowed.check(source(home / ".ssh" / "f.py"))
    with pytest.raises(NotAllowed, match=str(home / ".ssh")):
        allowed.check(source(home / "project" / "f.py"))


def test_the_defaults_are_the_home_the_start_and_the_temporary_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.chdir("/")
    assert allow_list([], [], []).folders == (home, Path("/tmp"))


def test_wrong_options_are_explained(home: Path) -> None:
    with pytest.raises(AgentError, match="--allow-folder"):
        allow_list([], [home / "missing"], [])
    with pytest.raises(AgentError, match="--allow-python"):
        allow_list([home / "missing"], [], [])
