"""Results of tasks in an S3-compatible store: that of moto, a store for tests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest

from nvcf_broker.process import free_port
from nvcf_cli.api import Api, Json, Target
from nvcf_cli.errors import CliError
from nvcf_cli.task_results import download, location_of, stored_files
from nvcf_worker.fetch.s3 import S3Settings
from nvcf_worker.tasks.s3_store import S3Store, StoreError
from tests.integration.tasks.conftest import Tasks
from tests.support.moto import moto_server
from tests.support.waiting import eventually

MIB = 2**20

# Uploads a file in parts of 5 MiB.
UPLOAD = """
import asyncio, sys
from pathlib import Path
from nvcf_worker.fetch.s3 import S3Settings
from nvcf_worker.tasks.s3_store import S3Store

async def main(endpoint, file, state):
    settings = S3Settings(endpoint=endpoint, key="key", secret="secret")
    async with S3Store(settings, "bucket", "run", Path(state), 5 * 2**20) as store:
        await store.put(Path(file), "large.bin")

asyncio.run(main(*sys.argv[1:]))
"""
TASK = """
import os
from nvcf_worker import Task, task

def main(run: Task):
    for epoch in (1, 2):
        folder = run.results_dir / f"epoch-{epoch}" / "deep"
        folder.mkdir(parents=True)
        (folder / "weights with spaces.bin").write_bytes(bytes([epoch]) * 100_000)
        run.checkpoint(folder)
        run.progress(50 * epoch, name=f"epoch-{epoch}", metadata={"epoch": epoch})
    (run.results_dir / "summary.txt").write_text("done")
    (run.results_dir / "empty").touch()
    if os.environ.get("WAITS"):
        (run.results_dir / "pid.new").write_text(str(os.getppid()))
        (run.results_dir / "pid.new").rename(run.results_dir / "pid")
        run.cancelled.wait(60)
    if os.environ.get("FAILS"):
        raise ValueError("no")

task(main)
"""


# Nothing is asked of the platform about results in a store.
API = Api(Target("http://127.0.0.1:1", "key"))


def in_store(place: str, task_id: str) -> Json:
    """Return what is known of a task whose results are there."""
    return {"id": task_id, "resultHandlingStrategy": "UPLOAD", "resultsLocation": place}


@dataclass
class Store:
    """The store, and the log of the requests to it."""

    endpoint: str
    log: Path
    key: str = "key"
    secret: str = "secret"

    @property
    def environ(self) -> dict[str, str]:
        """The variables by which clients find it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }

    @property
    def settings(self) -> S3Settings:
        """What the client needs."""
        return S3Settings.of(self.environ, None)

    def requests(self, text: str) -> list[str]:
        """Return the requests so far that have a text."""
        return [line for line in self.log.read_text().splitlines() if text in line]

    async def make_bucket(self) -> None:
        """Make the bucket; it can be made again."""
        async with aiohttp.ClientSession() as session, session.put(f"{self.endpoint}/bucket") as response:
            assert response.status == 200

    async def checks_signatures(self) -> Store:
        """Let the store refuse wrong signatures, by botocore's code; return it with a key that may do all."""
        scope = {"Authorization": "AWS4-HMAC-SHA256 Credential=key/20250101/us-east-1/iam/aws4_request, "}
        policy = '{"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}'
        calls: list[dict[str, str]] = [
            {"Action": "CreateUser"},
            {"Action": "PutUserPolicy", "PolicyName": "all", "PolicyDocument": policy},
            {"Action": "CreateAccessKey"},
        ]
        async with aiohttp.ClientSession(self.endpoint, raise_for_status=True) as session:
            for call in calls:
                form = {**call, "UserName": "user", "Version": "2010-05-08"}
                async with session.post("/", data=form, headers=scope) as response:
                    answer = await response.text()
            async with session.post("/moto-api/reset-auth", data="0"):
                pass
        found = dict(re.findall(r"<(AccessKeyId|SecretAccessKey)>([^<]+)<", answer))
        return replace(self, key=found["AccessKeyId"], secret=found["SecretAccessKey"])


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    port = free_port()
    log = tmp_path / "moto.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            moto_server(), "-H", "127.0.0.1", "-p", str(port), stdout=output, stderr=output
        )
    made = Store(f"http://127.0.0.1:{port}", log)
    try:

        async def answers() -> bool:
            with contextlib.suppress(aiohttp.ClientError):
                await made.make_bucket()
                return True
            return False

        await eventually(answers, "the store answers")
        yield made
    finally:
        process.kill()
        await process.wait()


async def test_small_and_large_files_come_back_whole(store: Store, tmp_path: Path) -> None:
    files = {"small": os.urandom(1000), "a b/ü+%.bin": os.urandom(11 * MIB + 3), "exact": os.urandom(5 * MIB)}
    async with S3Store(store.settings, "bucket", "/runs/1/", tmp_path / "state", 5 * MIB) as uploads:
        for name, content in files.items():
            (tmp_path / "file").write_bytes(content)
            assert await uploads.put(tmp_path / "file", name) == len(content)
    assert len(store.requests("partNumber=")) == 3
    found = await stored_files(API, in_store("s3://bucket/runs", "1"), store.environ)
    assert {each.path: each.size for each in found} == {name: len(data) for name, data in files.items()}
    # Half of a file has come before; its rest is asked for.
    to = tmp_path / "to"
    to.mkdir()
    (to / ".exact.part").write_bytes(files["exact"][: 3 * MIB])
    (to / ".small.part").write_bytes(b"something else")
    await download(API, in_store("s3://bucket/runs", "1"), to, store.environ)
    assert {name: (to / name).read_bytes() for name in files} == files
    assert not list(to.glob(".*"))


async def test_signatures_agree_with_another_implementation(store: Store, tmp_path: Path) -> None:
    """The store computes them again with botocore's code: of whole files, parts, lists and downloads."""
    store = await store.checks_signatures()
    files = {"a b/ü+%~&=.bin": os.urandom(5 * MIB + 3), "small": b"small"}
    async with S3Store(store.settings, "bucket", "runs/1", tmp_path / "state", 5 * MIB) as uploads:
        for name, content in files.items():
            (tmp_path / "file").write_bytes(content)
            await uploads.put(tmp_path / "file", name)
    await download(API, in_store("s3://bucket/runs", "1"), tmp_path / "to", store.environ)
    assert {name: (tmp_path / "to" / name).read_bytes() for name in files} == files
    wrong = replace(store, secret="another")
    async with S3Store(wrong.settings, "bucket", "runs/1", tmp_path / "state") as uploads:
        with pytest.raises(StoreError, match="SignatureDoesNotMatch"):
            await uploads.put(tmp_path / "file", "small")


async def test_an_upload_that_is_killed_is_continued(store: Store, tmp_path: Path) -> None:
    content = os.urandom(60 * MIB)
    (tmp_path / "large.bin").write_bytes(content)
    command = [
        *(sys.executable, "-c", UPLOAD),
        *(store.endpoint, str(tmp_path / "large.bin"), str(tmp_path / "state")),
    ]
    killed = await asyncio.create_subprocess_exec(*command)
    try:
        await eventually(
            lambda: len(store.requests("partNumber=")) >= 4, "parts have come", interval=0.01, timeout=60
        )
    finally:
        killed.kill()
        await killed.wait()
    assert killed.returncode == -signal.SIGKILL
    before = len(store.requests("partNumber="))
    again = await asyncio.create_subprocess_exec(*command)
    assert await again.wait() == 0
    assert len(store.requests("partNumber=")) <= 12 + 4, "only what was on its way is sent again"
    assert before < 12
    assert len(store.requests("uploads=")) == 1
    assert list((tmp_path / "state").iterdir()) == []
    await download(API, in_store("s3://bucket", "run"), tmp_path / "to", store.environ)
    assert (tmp_path / "to" / "large.bin").read_bytes() == content


async def test_a_begun_upload_of_another_content_is_given_up(store: Store, tmp_path: Path) -> None:
    state, file = tmp_path / "state", tmp_path / "file"
    async with S3Store(store.settings, "bucket", "run", state, 5 * MIB) as uploads:
        file.write_bytes(b"a" * 6 * MIB)
        first = await uploads._begin("run/file", "0" * 64, 5 * MIB)
        await uploads.put(file, "file")
        assert store.requests(f"DELETE /bucket/run/file?uploadId={first.id}")
        # The store has forgotten an upload: it begins anew.
        file.write_bytes(b"b" * 6 * MIB)
        second = await uploads._begin("run/file", (await asyncio.to_thread(_sha256, file)), 5 * MIB)
        await uploads._call("DELETE", "run/file", f"uploadId={second.id}")
        await uploads.put(file, "file")
    await download(API, in_store("s3://bucket", "run"), tmp_path / "to", store.environ)
    assert (tmp_path / "to" / "file").read_bytes() == b"b" * 6 * MIB


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_refusals_name_the_reason(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    async with S3Store(store.settings, "missing", "run", tmp_path / "state") as uploads:
        with pytest.raises(StoreError, match="NoSuchBucket"):
            await uploads.put(tmp_path / "file", "file")
    with pytest.raises(CliError, match="cannot be listed"):
        await stored_files(API, in_store("s3://missing", "run"), store.environ)


async def run_task(store: Store, folder: Path, **variables: str) -> tuple[int, dict[str, str]]:
    """Run a task by its worker, with the store's key in its secrets; return exit code and reason."""
    (folder / "task.py").write_text(TASK)
    (folder / "secrets").mkdir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        (folder / "secrets" / name).write_text(store.environ[name])
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL_S3": store.endpoint,
        "NVCF_SECRETS_DIR": str(folder / "secrets"),
        "NVCT_TASK_ID": "task-1",
        "NVCT_RESULTS_DIR": str(folder / "results"),
        "NVCT_PROGRESS_FILE_PATH": str(folder / "results" / "progress"),
        "NVCT_RESULT_HANDLING_STRATEGY": "UPLOAD",
        "RESULTS_LOCATION": "s3://bucket/nightly",
        "SHARED_CONFIG_DIR": str(folder / "shared"),
        **variables,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nvcf_worker", "task", str(folder / "task.py")), env=environment
    )
    code = await asyncio.wait_for(process.wait(), 60)
    return code, json.loads((folder / "shared" / "nvcf-worker-exit.json").read_bytes())


@pytest.mark.parametrize("fails", [False, True])
async def test_the_results_of_a_task_are_uploaded(store: Store, tmp_path: Path, fails: bool) -> None:
    code, reason = await run_task(store, tmp_path, **({"FAILS": "1"} if fails else {}))
    assert (code, reason["category"]) == ((1, "failed") if fails else (0, "completed"))
    found = await stored_files(API, in_store("s3://bucket/nightly", "task-1"), store.environ)
    assert {each.path: each.size for each in found} == {
        "epoch-1/deep/weights with spaces.bin": 100_000,
        "epoch-2/deep/weights with spaces.bin": 100_000,
        "summary.txt": 4,
        "empty": 0,
    }
    await download(API, in_store("s3://bucket/nightly", "task-1"), tmp_path / "to", store.environ)
    assert (tmp_path / "to" / "summary.txt").read_text() == "done"


async def test_a_task_without_its_results_is_not_complete(store: Store, tmp_path: Path) -> None:
    code, reason = await run_task(store, tmp_path, RESULTS_LOCATION="s3://missing/x")
    assert (code, reason["category"]) == (1, "upload-failed")
    assert "NoSuchBucket" in reason["text"]


async def test_a_task_that_is_ended_does_not_wait_for_a_store_beyond_its_grace_period(tmp_path: Path) -> None:
    """The address of the store takes connections and is silent."""
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as silent:
        store = Store(f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}", tmp_path / "no-log")
        run = asyncio.ensure_future(
            run_task(store, tmp_path, WAITS="1", NVCT_TERMINATION_GRACE_PERIOD_DURATION="2s")
        )
        await eventually((tmp_path / "results" / "pid").exists, "the task runs")
        worker = int((tmp_path / "results" / "pid").read_text())
        os.kill(worker, signal.SIGTERM)
        code, reason = await run
    assert (code, reason["category"]) == (143, "terminated")


async def test_a_task_of_the_platform_uploads_its_results(store: Store, tasks: Tasks, tmp_path: Path) -> None:
    """From the submitted task to the downloaded files."""
    secrets = [
        {"name": name, "value": store.environ[name]}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    ]
    fields = {"resultHandlingStrategy": "UPLOAD", "secrets": secrets}
    endpoint = {"AWS_ENDPOINT_URL_S3": store.endpoint}
    good = await tasks.submit(TASK, endpoint, resultsLocation="s3://bucket/runs", **fields)
    bad = await tasks.submit(TASK, endpoint, resultsLocation="s3://missing/runs", **fields)
    ended = await tasks.over(good)
    assert (ended["status"], ended["resultsLocation"]) == ("COMPLETED", "s3://bucket/runs"), ended
    location = location_of(ended)
    assert location == f"s3://bucket/runs/{good}/"
    await download(API, ended, tmp_path / "to", store.environ)
    assert (tmp_path / "to" / "epoch-2" / "deep" / "weights with spaces.bin").stat().st_size == 100_000
    assert (tmp_path / "to" / "summary.txt").read_text() == "done"
    failed = await tasks.over(bad)
    assert failed["status"] == "ERRORED"
    assert "NoSuchBucket" in failed["healthInfo"]["error"]
