"""Tasks from their submission to their end, with real processes of every part."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.integration.tasks.conftest import HEAD, MARKED, Tasks
from tests.support.platform.compute_plane import running_plane
from tests.support.platform.gateways import control_flags as plane_flags
from tests.support.waiting import eventually

REPORTING = (
    HEAD
    + """
from nvcf_worker import secrets
def main(run: Task):
    for number in (1, 2):
        (run.results_dir / f"epoch-{number}").mkdir()
        run.progress(40 * number, name=f"epoch-{number}", metadata={"loss": 1 / number})
        while not (run.results_dir / f"go-{number}").exists():
            time.sleep(0.02)
    (run.results_dir / "secret").write_text(secrets["LOGIN"] + str("NVCT_WORKER_TOKEN" in os.environ))
task(main)
"""
)
WAITING = HEAD + "def main(run: Task):\n    run.cancelled.wait(60)\n    raise SystemExit(7)\ntask(main)\n"
STUBBORN = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n"
INVALID = (
    HEAD
    + """
Path(os.environ["NVCT_PROGRESS_FILE_PATH"]).write_text('{"percentComplete": 0, "lastUpdatedAt": "?"}')
time.sleep(600)
"""
)


async def test_a_task_runs_to_its_end_and_tells_its_progress(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("local", "--cpu-slots", "2")
        tasks = Tasks(plane, tmp_path)
        secrets = [{"name": "LOGIN", "value": "sesame"}]
        task_id = await tasks.submit(REPORTING, secrets=secrets)

        async def halfway() -> bool:
            return (await tasks.get(task_id)).get("percentComplete") == 40

        await eventually(halfway, "the first report")
        running = await tasks.until(task_id, "RUNNING")
        assert (running["clusterName"], running["secrets"]) == ("local", ["LOGIN"])
        assert running["lastHeartbeatAt"]
        (instance,) = running["instances"]
        results = tmp_path / "agent-local" / "instances" / instance["instanceId"] / "results"
        (results / "go-1").touch()

        async def second() -> bool:
            return (await tasks.get(task_id)).get("percentComplete") == 80

        await eventually(second, "the second report")
        (results / "go-2").touch()
        over = await tasks.over(task_id)
        assert (over["status"], over["percentComplete"], over["launches"]) == ("COMPLETED", 100, 1), over
        events = await tasks.events(task_id)
        assert events[1:] == ["launched in cluster local", "running", "completed"]
        found = await plane.platform.call("GET", f"/v1/nvct/tasks/{task_id}/results")
        reported = [(each["name"], each["metadata"]) for each in reversed(found["results"])]
        assert reported[:2] == [("epoch-1", {"loss": 1.0}), ("epoch-2", {"loss": 0.5})]
        kept = tmp_path / "agent-local" / "results" / instance["instanceId"]
        await eventually(lambda: (kept / "secret").exists(), "the results are kept")
        assert (kept / "secret").read_text() == "sesameFalse"
        await plane.platform.call("DELETE", f"/v1/nvct/tasks/{task_id}", expect=204)
        await plane.platform.call("GET", f"/v1/nvct/tasks/{task_id}", expect=404)


async def test_limits_failures_and_cancels(tasks: Tasks) -> None:
    failing = await tasks.submit("import sys\nprint('no data', file=sys.stderr)\nsys.exit(9)\n")
    short = await tasks.submit(WAITING, maxRuntimeDuration="PT1S")
    for task_id, status, words in (
        (failing, "ERRORED", "no data"),
        (short, "EXCEEDED_MAX_RUNTIME_DURATION", "maximum run time"),
    ):
        over = await tasks.over(task_id)
        assert over["status"] == status

        async def explained(task_id: str = task_id, words: str = words) -> bool:
            return words in (await tasks.get(task_id))["healthInfo"]["error"]

        await eventually(explained, f"{words} is said")
    invalid = await tasks.over(await tasks.submit(INVALID))
    assert (invalid["status"], "1 to 100" in invalid["healthInfo"]["error"]) == ("ERRORED", True), invalid

    grace = "PT1S"
    first, second = [await tasks.submit(STUBBORN, terminationGracePeriodDuration=grace) for _ in range(2)]
    for task_id in (first, second):
        await tasks.until(task_id, "RUNNING")
    late = await tasks.submit(WAITING, maxQueuedDuration="PT2S")
    never = await tasks.submit(WAITING)
    await tasks.cancel(never)
    assert (await tasks.get(never))["status"] == "CANCELED"
    over = await tasks.over(late)
    assert over["status"] == "EXCEEDED_MAX_QUEUED_DURATION"
    assert "full" in over["healthInfo"]["error"] or "no free" in over["healthInfo"]["error"], over
    (instance,) = (await tasks.get(first))["instances"]
    worker = psutil.Process(instance["pid"])
    family = [worker, *worker.children(recursive=True)]
    await tasks.cancel(first)
    assert (await tasks.get(first))["status"] == "CANCELED"
    await eventually(lambda: not any(each.is_running() for each in family), "its processes are gone")
    # Its place is free again.
    assert (await tasks.over(await tasks.submit("print('hello')\n")))["status"] == "COMPLETED"
    await tasks.cancel(second)


@pytest.mark.slow
async def test_kills_of_every_part_lose_no_task_and_run_none_twice(tasks: Tasks, tmp_path: Path) -> None:
    """Each task notes its start in a folder of its own, and fails if another one of it runs there."""
    plane, made = tasks.plane, list[tuple[str, Path]]()

    async def submit() -> tuple[str, Path]:
        marks = tmp_path / f"marks-{len(made)}"
        marks.mkdir()
        found = (await tasks.submit(MARKED, {"MARKS": str(marks)}), marks)
        made.append(found)
        return found

    # The gateway dies while one runs and one is queued: both go on.
    running = [await submit() for _ in range(2)]
    for task_id, _ in running:
        await tasks.until(task_id, "RUNNING")
    queued = await submit()
    gateway = plane.platform.gateways.pop()
    address = gateway.url.removeprefix("http://")
    gateway.child.process.send_signal(signal.SIGKILL)
    await gateway.child.wait()
    # The autoscaler dies as well, and another one leads.
    plane.autoscalers[0].process.send_signal(signal.SIGKILL)
    await plane.platform.start_gateway(
        "--http", address, "--grpc", gateway.grpc, *plane_flags(plane.platform.broker)
    )
    await plane.start_autoscaler()
    (running[0][1] / "go").touch()
    assert (await tasks.over(running[0][0]))["status"] == "COMPLETED"
    await tasks.until(queued[0], "RUNNING")
    await eventually(lambda: (queued[1] / "starts").exists(), "it has begun")
    # The task's own process dies, then the agent with everything that it runs.
    (instance,) = (await tasks.get(running[1][0]))["instances"]
    (child,) = psutil.Process(instance["pid"]).children()
    child.kill()
    killed = await tasks.over(running[1][0])
    assert (killed["status"], "SIGKILL" in killed["healthInfo"]["error"]) == ("ERRORED", True), killed
    await plane.kill_cluster("local")
    waiting = await submit()
    await plane.start_agent("local", "--cpu-slots", "2", "--instance-uid-range", "none")
    lost = await tasks.over(queued[0])
    assert (lost["status"], "agent" in lost["healthInfo"]["error"]) == ("ERRORED", True), lost
    await tasks.until(waiting[0], "RUNNING")
    (waiting[1] / "go").touch()
    assert (await tasks.over(waiting[0]))["status"] == "COMPLETED"
    for _, marks in made:
        assert (marks / "starts").read_text() == "start\n"
