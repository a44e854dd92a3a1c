"""D1, D2, D3, D6: the terminal says what the platform knows, at 80 columns, and names the way out."""

from __future__ import annotations

import asyncio
import io
import logging
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from rich.console import Console

from nvcf_cli.commands.local import greeting
from nvcf_cli.commands.top import render
from nvcf_cli.local.state import PlatformState
from nvcf_cli.main import run
from nvcf_cli.snapshot import Row, Snapshot, snapshot
from nvcf_proto.launch import version_text
from nvcf_worker.process.logs import Ids
from nvcf_worker.run.processes.packing import pack_error, unpack_error
from nvcf_worker.run.threads import ThreadPool

LONG = ("team-vision_detector-production-v2.1.0", "team-vision_detector-production-v2.1.1")
COMMANDS = ("nvcf", "nvcf-worker", "nvcf-gateway", "nvcf-agent", "nvcf-autoscaler")


def shown(width: int, *names: str) -> list[str]:
    """The lines of `nvcf top` for these functions."""
    instances = {"RUNNING": 13, "STARTING": 12, "TERMINATING": 2}
    rows = tuple(
        Row(name, "v", "ACTIVE", instances, 12000, 480, 75.2, 3, 10.0, 99.5, 0.2, 0.012, 0.4, 1.93)
        for name in names
    )
    decision = {
        "functionName": names[0],
        "text": "3: 12 requests wait for 2 free slots, and the queue grows by 4 a second",
        "data": {"desired": 3, "up": 2},
    }
    out = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    out.print(render(Snapshot("now", rows, (decision,)), width=width))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_d2_top_shows_each_number_beside_long_names(width: int) -> None:
    lines = shown(width, *LONG)
    assert all(len(line) <= width for line in lines)
    table = [line for line in lines if line.startswith("team-")][:2]
    assert len(set(table)) == 2, "names that differ at their ends stay different"
    for line in table:
        for value in ("13 +12 -2", "12000", "480", "99.5", "0.20%", "1.93 s"):
            assert value in line
    assert "the queue grows by 4 a second" in " ".join(" ".join(lines).split()), "reasons are not cut"


@pytest.mark.parametrize("missing", ["typer", "msgspec", "nkeys"])
def test_d3_a_bare_install_names_the_extra(missing: str) -> None:
    for command, extra in (("nvcf", "local"), ("gateway", "gateway"), ("agent", "agent")):
        if missing == "typer" and command != "nvcf":
            continue
        code = (
            f"import sys; sys.modules[{missing!r}] = None\nfrom nvcf_proto import launch\nlaunch.{command}()"
        )
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ended.returncode == 1
        assert f"pip install 'nvcf-worker[{extra}]'" in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_d6_each_command_tells_its_version(command: str) -> None:
    program = Path(sys.executable).with_name(command)
    ended = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == version_text(command)


def test_d6_wrong_use_names_the_way_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["delete", "hello"]) == 2
    assert "nvcf undeploy hello --delete" in capsys.readouterr().err
    assert run(["new", "a b", "--folder", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "NAME a b" in error
    assert "--name" not in error


def test_d6_the_greeting_of_another_folder_can_be_copied(tmp_path: Path) -> None:
    state = PlatformState(1, "http://host:1", "host:2", "nats://host:3", "/key", str(tmp_path), 0.0)
    text = greeting(state)
    assert f"nvcf deploy function.py --data {tmp_path}" in text
    assert f"nvcf invoke function --data hello --platform {tmp_path}" in text
    assert "http://host:1/openapi.json" in text


def test_d6_a_version_that_ends_keeps_its_row() -> None:
    old = {"name": "f", "versionId": "old", "status": "INACTIVE"}
    gone = {"name": "f", "versionId": "gone", "status": "INACTIVE"}
    new = {"name": "f", "versionId": "new", "status": "ACTIVE"}
    instances = [
        {"functionVersionId": "old", "state": "TERMINATING"},
        {"functionVersionId": "gone", "state": "COMPLETED"},
    ]
    rows = snapshot({}, [old, gone, new], instances, [], []).rows
    assert {row.version_id for row in rows} == {"old", "new"}


async def test_d6_a_traceback_begins_at_the_users_line() -> None:
    def fails() -> None:
        raise ValueError("the user's")

    pool = ThreadPool(asyncio.get_running_loop())
    try:
        with pytest.raises(ValueError, match="the user's") as raised:
            await pool.run(fails)
    finally:
        pool.close()
    error = raised.value
    assert error.__traceback__ is not None
    # The frame of this test stands for what is outside the worker; in a worker there is none.
    error = error.with_traceback(error.__traceback__.tb_next)
    assert "nvcf_worker" in "".join(traceback.format_exception(error))
    information = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), information)
    Ids().filter(record)
    assert record.exc_info is not None
    text = "".join(traceback.format_exception(*record.exc_info))
    assert "nvcf_worker" not in text
    assert "in fails" in text
    assert "nvcf_worker" not in str(unpack_error(pack_error(error)).__cause__)
