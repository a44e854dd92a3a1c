"""Secrets of instances: where they are written, for whom, and how they change and go."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nvcf_agent import secrets as module
from nvcf_agent.backends.environment import InstanceOf
from nvcf_agent.secret_files import FileSink, SecretFolders, is_tmpfs, remove_abandoned, write_values
from nvcf_agent.secrets import InstanceSecrets, SecretsError, SecretToken
from nvcf_proto.ids import new_id
from nvcf_proto.secrets import function_secrets_path, telemetry_secrets_path
from tests.support.waiting import eventually

TELEMETRY = telemetry_secrets_path("one", "t")


@dataclass
class Source:
    """A gateway's secrets: all versions have the same ones."""

    values: dict[str, Any] = field(default_factory=dict)
    works: bool = True
    known: bool = True
    life: float = 900.0
    revoked: set[str] = field(default_factory=set)
    tokens: list[str] = field(default_factory=list)
    reads: int = 0
    unchanged: int = 0

    async def token(self, instance: InstanceOf) -> SecretToken | None:
        if not self.works:
            raise SecretsError("HTTP 503")
        if not self.known:
            return None
        self.tokens.append(instance.instance_id)
        paths = (function_secrets_path(instance.function_id, instance.version_id), TELEMETRY)
        expires = asyncio.get_running_loop().time() + self.life
        return SecretToken("x", expires, paths, instance.instance_id)

    async def read(self, token: SecretToken, path: str, tag: str | None) -> tuple[str, dict[str, Any]] | None:
        self.reads += 1
        if not self.works or token.instance_id in self.revoked:
            raise SecretsError("HTTP 403")
        if path == TELEMETRY:
            return "t", {"vendor": "of the telemetry"}
        now = json.dumps(self.values)
        if tag == now:
            self.unchanged += 1
            return None
        return now, dict(self.values)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLLOW_SECONDS", 0.02)


@pytest.fixture
def source() -> Source:
    return Source({"TOKEN": "one", "CONFIG": {"ä": 1}})


@pytest.fixture
async def kept(tmp_path: Path, source: Source, quick: None) -> AsyncIterator[InstanceSecrets]:
    folders = SecretFolders(tmp_path, tmp_path / "no-memory")
    loop = asyncio.get_running_loop()
    async with InstanceSecrets(source, FileSink(folders), loop.time) as made:
        yield made


def instance(tmp_path: Path, like: InstanceOf | None = None) -> tuple[InstanceOf, Path]:
    made = replace(like or InstanceOf("", new_id(), new_id()), instance_id=f"0-sr-{new_id()}")
    home = tmp_path / "instances" / made.instance_id
    home.mkdir(parents=True)
    return made, home


def written(folder: Path) -> Any:
    path = folder / "secrets.json"
    return json.loads(path.read_text()) if path.exists() else None


async def test_they_are_there_before_the_start_and_change_while_it_runs(
    tmp_path: Path, kept: InstanceSecrets, source: Source
) -> None:
    first, home = instance(tmp_path)
    folder = await kept.begin(first, home, None)
    assert written(folder) == {"TOKEN": "one", "CONFIG": {"ä": 1}}
    assert stat.S_IMODE((folder / "secrets.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    second, home = instance(tmp_path, first)
    other = await kept.begin(second, home, None)
    source.values = {"TOKEN": "two"}
    await eventually(lambda: written(folder) == written(other) == {"TOKEN": "two"})
    source.values = {}
    await eventually(lambda: written(folder) is None and written(other) is None)
    source.values = {"TOKEN": "three"}
    await eventually(lambda: written(folder) == written(other) == {"TOKEN": "three"})
    # Both share one request, which mostly finds nothing new.
    before, unchanged = source.reads, source.unchanged
    await eventually(lambda: source.reads > before + 5)
    assert source.unchanged - unchanged >= 5
    await kept.end(first.instance_id)
    assert not folder.exists()
    assert written(other) == {"TOKEN": "three"}
    source.values = {"TOKEN": "four"}
    await eventually(lambda: written(other) == {"TOKEN": "four"})
    await kept.end(second.instance_id)
    await kept.end(second.instance_id)
    assert not other.exists()
    reads = source.reads
    await asyncio.sleep(0.1)
    assert source.reads == reads


async def test_without_them_nothing_starts_and_later_it_does(
    tmp_path: Path, kept: InstanceSecrets, source: Source
) -> None:
    made, home = instance(tmp_path)
    source.works = False
    with pytest.raises(SecretsError):
        await kept.begin(made, home, None)
    await kept.end(made.instance_id)
    source.works = True
    assert written(await kept.begin(made, home, None)) == source.values


async def test_a_gateway_without_secrets_is_no_reason_not_to_start(
    tmp_path: Path, kept: InstanceSecrets, source: Source
) -> None:
    source.known = False
    made, home = instance(tmp_path)
    assert written(await kept.begin(made, home, None)) is None
    assert await kept.of_telemetries(made) == {}


async def test_an_outage_keeps_what_is_there_and_is_said_once(
    tmp_path: Path, kept: InstanceSecrets, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    made, home = instance(tmp_path)
    folder = await kept.begin(made, home, None)
    source.works = False
    await eventually(lambda: "would not be seen now" in caplog.text)
    await asyncio.sleep(0.1)
    assert caplog.text.count("would not be seen now") == 1
    assert written(folder) == {"TOKEN": "one", "CONFIG": {"ä": 1}}
    source.works, source.values = True, {"TOKEN": "two"}
    await eventually(lambda: written(folder) == {"TOKEN": "two"})
    assert "one" not in caplog.text
    assert "two" not in caplog.text


async def test_a_token_is_renewed_before_its_end_and_replaced_when_its_instance_has_ended(
    tmp_path: Path, kept: InstanceSecrets, source: Source
) -> None:
    source.life = 30.0
    first, home = instance(tmp_path)
    await kept.begin(first, home, None)
    await eventually(lambda: len(source.tokens) > 3)
    source.life = 900.0
    second, home = instance(tmp_path, first)
    folder = await kept.begin(second, home, None)
    source.revoked.add(first.instance_id)
    source.values = {"TOKEN": "two"}
    await eventually(lambda: written(folder) == {"TOKEN": "two"})


async def test_secrets_of_telemetry_are_apart_from_the_functions(
    tmp_path: Path, kept: InstanceSecrets
) -> None:
    made, home = instance(tmp_path)
    assert await kept.of_telemetries(made) == {"vendor": "of the telemetry"}
    assert "vendor" not in written(await kept.begin(made, home, None))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to another user")
async def test_a_user_of_its_own_reads_its_file_and_changes_nothing(
    tmp_path: Path, kept: InstanceSecrets
) -> None:
    made, home = instance(tmp_path)
    folder = await kept.begin(made, home, 1900000001)
    status = (folder / "secrets.json").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (1900000001, 0o600)
    status = folder.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 1900000001, 0o750)


@pytest.fixture
def memory() -> Path:
    shared = Path("/dev/shm")
    if not is_tmpfs(shared):
        pytest.skip("no tmpfs here")
    return shared


def test_memory_is_used_where_it_is_and_left_empty(tmp_path: Path, memory: Path) -> None:
    folders = SecretFolders(tmp_path)
    folders.open()
    home = tmp_path / "home"
    home.mkdir()
    one = folders.make("one", home, None)
    assert one.parent.parent == memory
    assert stat.S_IMODE(one.parent.stat().st_mode) == 0o711
    write_values(one, {"A": "x"}, None)
    folders.telemetry.mkdir()
    folders.close()
    assert not one.parent.exists()
    folders.close()
    assert list(tmp_path.iterdir()) == [home]
    assert list(home.iterdir()) == []


def test_what_a_killed_agent_left_in_memory_is_removed_by_the_next(tmp_path: Path, memory: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from nvcf_agent.secret_files import SecretFolders\n"
        "folders = SecretFolders(Path(sys.argv[1])); folders.open()\n"
        "print(folders.make('one', Path(sys.argv[1]), None), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    left = Path(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.strip())
    assert left.is_dir()
    os.utime(left.parent, (0, 0))
    alive = SecretFolders(tmp_path / "alive")
    alive.open()
    own = alive.make("two", tmp_path, None)
    os.utime(own.parent, (0, 0))
    assert not left.exists()
    # That of an agent that runs stays, and so does one that is just being made.
    young = Path(tempfile.mkdtemp(prefix="nvcf-secrets-", dir=memory))
    another = SecretFolders(tmp_path / "another")
    another.open()
    assert own.is_dir()
    assert young.is_dir()
    os.utime(young, (0, 0))
    remove_abandoned(memory)
    assert not young.exists()
    another.close()
    alive.close()
    assert not own.exists()


def test_what_is_not_a_folder_of_an_agent_stays(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "nvcf-secrets-link").symlink_to(precious)
    (tmp_path / "nvcf-secrets-file").write_text("x")
    remove_abandoned(tmp_path)
    assert precious.exists()
    assert (tmp_path / "nvcf-secrets-file").exists()


def test_what_counts_as_memory(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    folder = tmp_path / "shm"
    folder.mkdir()
    for text, expected in (
        (f"tmpfs {folder} tmpfs rw 0 0\n", True),
        (f"/dev/sda {folder} ext4 rw 0 0\n", False),
        (f"tmpfs {folder} tmpfs rw 0 0\n/dev/sda {folder} ext4 rw 0 0\n", False),
        ("tmpfs /elsewhere tmpfs rw 0 0\n\n", False),
    ):
        mounts.write_text(text)
        assert is_tmpfs(folder, mounts) is expected
    assert not is_tmpfs(folder, tmp_path / "none")


def test_an_instance_that_has_ended_meanwhile_gets_nothing(tmp_path: Path) -> None:
    write_values(tmp_path / "gone", {"A": "x"}, None)
    write_values(tmp_path / "gone", {}, None)
    assert not (tmp_path / "gone").exists()


async def test_a_start_while_the_gateway_is_away_uses_what_is_known(
    tmp_path: Path, kept: InstanceSecrets, source: Source
) -> None:
    first, home = instance(tmp_path)
    await kept.begin(first, home, None)
    source.works = False
    folder = await kept.begin(first, home, None)
    assert written(folder)["TOKEN"] == "one"
    other, home = instance(tmp_path)
    with pytest.raises(SecretsError):
        await kept.begin(other, home, None)
