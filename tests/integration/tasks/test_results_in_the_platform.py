"""Results of tasks in the platform's own store: uploaded, listed, downloaded, removed."""

from __future__ import annotations

from pathlib import Path

from nvcf_cli.api import Api, Target
from nvcf_cli.task_results import download, remove, stored_files
from tests.integration.tasks.conftest import HEAD, Tasks
from tests.support.waiting import eventually

TRAIN = (
    HEAD
    + """
def main(run: Task):
    (run.results_dir / "first").mkdir()
    (run.results_dir / "first" / "large.bin").write_bytes(bytes(range(256)) * 20_000)
    (run.results_dir / "first" / "empty").touch()
    run.checkpoint(run.results_dir / "first")
    run.progress(50, name="first")
    while not Path(os.environ["GO"]).exists() and not run.cancelled:
        time.sleep(0.02)
    (run.results_dir / "ü summary.txt").write_text("done")
task(main)
"""
)


def api(tasks: Tasks) -> Api:
    """Return a client with the key of the account."""
    platform = tasks.plane.platform
    key = platform.authorization()["Authorization"].removeprefix("Bearer ")
    return Api(Target(platform.gateway.url, key))


async def test_results_are_there_as_soon_as_they_are_reported(tasks: Tasks, tmp_path: Path) -> None:
    go = tmp_path / "files" / "go"
    task_id = await tasks.submit(TRAIN, {"GO": str(go)}, resultHandlingStrategy="UPLOAD")
    async with api(tasks) as client:
        task = await tasks.get(task_id)

        async def listed() -> bool:
            return len(await stored_files(client, task)) == 2

        await eventually(listed, "the first result is listed", story=tasks.plane.story)
        go.touch()
        assert (await tasks.over(task_id))["status"] == "COMPLETED"
        found = {each.path: each.size for each in await stored_files(client, task)}
        assert found == {"first/large.bin": 5_120_000, "first/empty": 0, "ü summary.txt": 4}
        to = tmp_path / "to"
        (to / "first").mkdir(parents=True)
        (to / "first" / ".large.bin.part").write_bytes(b"of another file")
        await download(client, task, to)
        assert (to / "first" / "large.bin").read_bytes() == bytes(range(256)) * 20_000
        assert (to / "ü summary.txt").read_text() == "done"
        # Others neither see nor remove them.
        foreign = tasks.plane.platform.authorization("foreign")["Authorization"].removeprefix("Bearer ")
        async with Api(Target(client.url, foreign)) as other:
            assert await stored_files(other, task) == []
        quotas = {each["quota"]: each["used"] for each in await client.quotas()}
        assert (quotas["assets"], quotas["asset-bytes"] >= 5_120_000) == (4, True)
        await remove(client, task)
        assert await stored_files(client, task) == []
        assert {each["quota"]: each["used"] for each in await client.quotas()}["assets"] == 0


async def test_a_task_ends_with_the_reason_if_the_platform_takes_no_results(
    tasks: Tasks, tmp_path: Path
) -> None:
    source = HEAD + "def main(run: Task):\n    (run.results_dir / 'x').write_text('x')\ntask(main)\n"
    plain = await tasks.submit(source)
    assert (await tasks.over(plain))["status"] == "COMPLETED"
    async with api(tasks) as client:
        assert await stored_files(client, await tasks.get(plain)) == []
        # A worker whose task does not upload here is refused.
        url = f"{client.url}/v1/nvct/uploads/{plain}"
        for token in ("nothing", client.authorization["Authorization"].removeprefix("Bearer ")):
            headers = {"Authorization": f"Bearer {token}"}
            async with tasks.plane.platform.session.post(
                url, json={"path": "x"}, headers=headers
            ) as response:
                assert response.status == 401, await response.text()
