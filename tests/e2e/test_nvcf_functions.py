"""Functions with the nvcf command as a user runs it: calls, logs, versions, clusters, scaling."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from nvcf_broker.process import spawn
from tests.support.platform.nvcf_command import HELLO, WAIT, Local, nvcf_commands
from tests.support.waiting import eventually


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Local]:
    async with nvcf_commands(tmp_path) as made:
        yield made


async def test_streams_headers_paths_and_input_from_a_pipe(local: Local) -> None:
    await local.start()
    source = """
from nvcf_worker import Request

async def handler(request: Request):
    yield f"{request.method} {request.path} b={request.query.get('b')} {request.headers.get('x-color')}\\n"
    yield await request.read()
"""
    await local.ok("deploy", local.write("echo.py", source))
    piped = await local.ok(
        "invoke", "echo", "--data", "-", "--stream", "-H", "X-Color=blue", data=b"from a pipe"
    )
    assert piped == "POST / b=None blue\nfrom a pipe"
    (local.folder / "body.bin").write_bytes(b"from a file")
    passed = await local.ok("invoke", "echo", "--data", "@body.bin", "-X", "PUT", "--path", "/a?b=c")
    assert passed == "PUT /a b=c None\nfrom a file"


async def test_logs_are_followed_while_lines_are_added(local: Local) -> None:
    await local.start()
    await local.ok("deploy", local.write("hello.py", HELLO))
    following = await spawn(
        [sys.executable, "-m", "nvcf_cli", "logs", "hello", "-f", "-n", "0"],
        env=local.environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert following.stdout is not None
        line = asyncio.create_task(following.stdout.readline())
        while not line.done():
            await local.hello()
            await asyncio.wait({line}, timeout=0.5)
        assert b"asked" in await line
    finally:
        following.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(following.wait(), WAIT) == 130


async def test_a_platform_elsewhere_is_used_with_url_and_key(local: Local) -> None:
    await local.start()
    state = await local.status()
    environment = {
        "NVCF_HOME": str(local.folder / "none"),
        "NVCF_URL": state["url"],
        "PATH": os.environ["PATH"],
    }

    def listing(**extra: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nvcf_cli", "functions", "--json"]
        return subprocess.run(
            command, env={**environment, **extra}, capture_output=True, text=True, timeout=WAIT, check=False
        )

    without = await asyncio.to_thread(listing)
    assert (without.returncode, "--key-file" in without.stderr) == (2, True)
    wrong = await asyncio.to_thread(listing, NVCF_API_KEY="nvcf-000000000000-" + "x" * 43)
    assert (wrong.returncode, "401" in wrong.stderr) == (1, True)
    right = await asyncio.to_thread(listing, NVCF_API_KEY=(local.data / "admin.key").read_text().strip())
    assert (right.returncode, json.loads(right.stdout)) == (0, [])


async def test_a_new_version_under_load_loses_no_request(local: Local) -> None:
    await local.start()
    source = (
        "import asyncio\nasync def handler(request):\n    await asyncio.sleep(0.05)\n    return 'version 1'\n"
    )
    file = local.write("busy.py", source)
    await local.ok("deploy", file, "--concurrency", "2")
    state = await local.status()
    (version,) = (await local.run("functions", "--json")).json()
    url = f"{state['url']}/v2/nvcf/pexec/functions/{version['id']}"
    headers = {"Authorization": f"Bearer {(local.data / 'admin.key').read_text().strip()}"}
    answers: Counter[tuple[int, str]] = Counter()
    enough = asyncio.Event()

    async def caller(session: aiohttp.ClientSession) -> None:
        while not enough.is_set():
            async with session.post(url, data=b"x", headers=headers) as response:
                answers[(response.status, await response.text())] += 1

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for _ in range(12):
            group.create_task(caller(session))
        await eventually(lambda: answers[(200, "version 1")] > 20)
        local.write("busy.py", source.replace("version 1", "version 2"))
        await local.ok("deploy", file, "--concurrency", "2")
        await eventually(lambda: answers[(200, "version 2")] > 20)
        enough.set()
    assert set(answers) == {(200, "version 1"), (200, "version 2")}


async def test_several_clusters_with_gpus_on_one_machine(local: Local) -> None:
    await local.start("--clusters", "2", "--gpus", "2")
    children = (await local.status())["children"]
    assert set(children) == {"broker", "gateway", "agent-local-1", "agent-local-2", "autoscaler"}
    source = "import os\ndef handler(request):\n    return os.environ['CUDA_VISIBLE_DEVICES']\n"
    file = local.write("devices.py", source)
    deployed = await local.ok("deploy", file, "--gpu", "SIM", "--instances", "4")
    assert "4 instances" in deployed
    before = await local.instances()
    places = Counter((each["clusterName"], each["gpu"], each["visibleDevices"]) for each in before)
    expected = [(f"local-{cluster}", "SIM", device) for cluster in (1, 2) for device in ("0", "1")]
    assert places == Counter(expected)
    assert await local.ok("invoke", "devices", "--data", "x") in ("0", "1")
    shown = await local.ok("instances")
    assert "CLUSTER" in shown
    assert "SIM 1" in shown
    clusters = {each["clusterName"]: each for each in (await local.run("clusters", "--json")).json()}
    pools = [
        (pool["gpu"], pool["instanceType"], pool["instancesTotal"]) for pool in clusters["local-2"]["pools"]
    ]
    # The types of one GPU share its devices.
    types = ("process", "NCP.GPU.SIM_1x", "NCP.GPU.SIM_2x")
    assert sorted(pools) == sorted([("CPU", "process", 256), *(("SIM", each, 2) for each in types)])
    listed = await local.ok("clusters")
    assert listed.count("live") == 2
    assert "CPU 256/256, SIM 0/2" in listed
    # There is no free GPU: the function with the most instances gives one up, and gets it back.
    await local.ok("deploy", file, "--name", "more", "--gpu", "SIM")
    assert sorted(Counter(await local.running()).values()) == [1, 3]
    await local.ok("undeploy", "more")

    async def all_of_one_version() -> bool:
        versions = await local.running()
        return len(versions) == 4 and len(set(versions)) == 1

    await eventually(all_of_one_version, "the first function has all four GPUs again")
    before = [each for each in await local.instances() if each["state"] == "RUNNING"]
    # After an agent is killed, its instances run again on the same cluster with the same GPUs.
    os.kill(children["agent-local-2"]["pid"], signal.SIGKILL)
    await eventually(lambda: "the agent-local-2 is back" in local.said())

    async def all_running() -> bool:
        return len(await local.running()) >= 4

    await eventually(all_running, "four instances run again")
    after = await local.instances()
    assert {each["instanceId"] for each in before} <= {each["instanceId"] for each in after}
    running = [each for each in after if each["state"] == "RUNNING"]
    assert Counter((each["clusterName"], each["gpu"], each["visibleDevices"]) for each in running) == places
    # More than there are GPUs: the missing instances wait, and the command reports it.
    full = await local.run(
        "deploy", file, "--name", "too-many", "--gpu", "SIM", "--instances", "5", "--timeout", "3"
    )
    assert full.code == 1
    assert "not ready after 3 s" in full.err
    await local.ok("down")
    assert local.processes() == []


async def test_a_function_at_zero_is_started_by_its_first_request_and_ends_when_idle(local: Local) -> None:
    await local.start()
    file = local.write("hello.py", HELLO)
    deployed = await local.ok("deploy", file, "--min", "0", "--max", "2", "--scale-to-zero-delay", "20")
    assert "0 to 2 instances" in deployed
    assert await local.instances() == []
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}
    assert "1 running" in await local.ok("scaling", "hello")
    assert "RUNNING" in await local.ok("events", "hello", "--kind", "instance")

    async def no_instance() -> bool:
        return await local.instances() == []

    await eventually(no_instance, "the function is back at zero")
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}


async def test_a_crashed_autoscaler_restarts_and_changes_nothing(local: Local) -> None:
    await local.start()
    await local.ok("deploy", local.write("hello.py", HELLO), "--instances", "2")
    before = await local.instances()
    os.kill((await local.status())["children"]["autoscaler"]["pid"], signal.SIGKILL)
    await eventually(lambda: "the autoscaler is back" in local.said())
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}
    await local.ok("deploy", local.write("other.py", HELLO), "--name", "other")
    after = {each["instanceId"]: each for each in await local.instances()}
    assert all(after[each["instanceId"]]["pid"] == each["pid"] for each in before)


async def test_every_process_and_instance_serves_metrics_at_its_listed_address(local: Local) -> None:
    await local.start("--clusters", "2")
    await local.ok("deploy", local.write("hello.py", HELLO))
    await local.hello()

    async def addresses() -> dict[str, str]:
        listed = (await local.run("metrics", "--json")).json()
        return {
            **listed["platform"],
            **{each["nvcf_function_name"]: each["address"] for each in listed["instances"]},
        }

    async def all_listed() -> bool:
        return len(await addresses()) == 5

    await eventually(all_listed, "five processes serve metrics")
    found = await addresses()
    ids = json.loads((local.data / "clusters.json").read_text())
    expected = {
        "gateway": "nvcf_invocation_duration_seconds_count{",
        "agent-local-1": f'nvcf_cluster_gpus{{nvcf_cluster_id="{ids["local-1"]}"',
        "agent-local-2": f'nvcf_cluster_gpus{{nvcf_cluster_id="{ids["local-2"]}"',
        "autoscaler": "nvcf_instances{",
        "hello": "nvcf_handler_duration_seconds_count{",
    }
    assert found.keys() == expected.keys()
    async with aiohttp.ClientSession() as session:
        for name, text in expected.items():
            async with session.get(f"http://{found[name]}/metrics") as response:
                assert text in await response.text(), name
    shown = await local.ok("metrics")
    assert all(address in shown for address in found.values())
    assert str(local.data / "prometheus.yml") in shown
    assert await local.ok("metrics", "--config") == (local.data / "prometheus.yml").read_text()


async def test_without_metrics_nothing_listens_for_them(local: Local) -> None:
    await local.start("--no-metrics")
    ran = await local.run("metrics")
    assert (ran.code, "--no-metrics" in ran.err) == (1, True)
    assert (await local.status())["metrics"] == {}
