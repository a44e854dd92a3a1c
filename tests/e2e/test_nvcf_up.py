"""The `nvcf` command as its user has it: a whole platform on one machine, with crashes."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from nvcf_broker.process import free_port, spawn
from nvcf_broker.server import LocalBroker

WAIT = 60.0
HELLO = """
from nvcf_worker import Request

async def handler(request: Request) -> dict[str, str]:
    print("asked", flush=True)
    return {"greeting": f"Hello, {(await request.json())['name']}!"}
"""
# Takes its time the first time only, so that a second worker (or the same, restarted) answers at once.
SLOW = """
import os, time
from pathlib import Path
from nvcf_worker import Request

def handler(request: Request) -> str:
    first = Path(os.environ["MARKER"])
    if not first.exists():
        first.write_text(str(os.getpid()))
        time.sleep(600)
    return f"answered by {os.getpid()}"
"""


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


@dataclass
class Local:
    """A data folder and the commands on it."""

    folder: Path
    up: asyncio.subprocess.Process | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("NVCF_")}
        return {**inherited, "NVCF_HOME": str(self.data), "NO_COLOR": "1"}

    async def run(self, *arguments: str, data: bytes = b"") -> Ran:
        process = await spawn(
            [sys.executable, "-m", "nvcf_cli", *arguments],
            env=self.environment(),
            cwd=self.folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(data), WAIT)
        assert "Traceback" not in err.decode() or "the function does not start" in err.decode()
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    async def ok(self, *arguments: str, data: bytes = b"") -> str:
        ran = await self.run(*arguments, data=data)
        assert ran.code == 0, ran
        return ran.out

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        with (self.folder / "up.out").open("ab") as log:
            self.up = await spawn(
                [sys.executable, "-m", "nvcf_cli", "up", "--http-port", "0", *arguments],
                env=self.environment(),
                stdout=log,
                stderr=log,
            )
        up = self.up
        await eventually(lambda: (self.data / "state.json").exists() or up.returncode is not None)
        assert up.returncode is None, self.said()
        return up

    def said(self) -> str:
        return (self.folder / "up.out").read_text()

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    async def status(self) -> dict[str, Any]:
        return dict((await self.run("status", "--json")).json())

    async def instances(self) -> list[dict[str, Any]]:
        return list((await self.run("instances", "--json")).json())

    async def running(self) -> list[str]:
        """The version of each instance that runs."""
        return [each["functionVersionId"] for each in await self.instances() if each["state"] == "RUNNING"]

    async def hello(self) -> str:
        return await self.ok("invoke", "hello", "--data", '{"name": "Ada"}')

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to this platform: it carries the data folder in its environment."""
        return list(processes_of(self.data))


def processes_of(data: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                variables = process.environ()
                ours = variables.get("NVCF_HOME") == str(data)
                if ours or variables.get("SHARED_CONFIG_DIR", "").startswith(f"{data}/"):
                    yield process


async def eventually(condition: Callable[[], bool], timeout: float = WAIT) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Local]:
    made = Local(tmp_path)
    yield made
    if made.up is not None and made.up.returncode is None:
        made.up.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(made.up.wait(), 30)
    for process in made.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()


async def test_from_nothing_to_an_answer_and_back(local: Local) -> None:
    up = await local.start()
    state = await local.status()
    assert state["running"]
    assert {child["state"] for child in state["children"].values()} == {"running"}
    said = local.said()
    key = (local.data / "admin.key").read_text().strip()
    assert str(local.data / "admin.key") in said
    assert key not in said
    assert "curl -H" in said

    file = local.write("hello.py", HELLO)
    deployed = await local.ok("deploy", file)
    assert "hello: ready in" in deployed
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}
    (version,) = (await local.run("functions", "--json")).json()
    assert (version["name"], version["status"]) == ("hello", "ACTIVE")
    assert "hello" in await local.ok("functions")
    assert "RUNNING" in await local.ok("instances", "hello")
    assert "asked" in await local.ok("logs", "hello")

    local.write("hello.py", HELLO.replace("Hello", "Good morning"))
    again = await local.ok("deploy", file)
    assert "the version before is ending" in again
    assert json.loads(await local.hello()) == {"greeting": "Good morning, Ada!"}
    versions = (await local.run("functions", "--all", "--json")).json()
    assert sorted(each["status"] for each in versions) == ["ACTIVE", "INACTIVE"]

    assert "undeployed" in await local.ok("undeploy", "hello")
    refused = await local.run("invoke", "hello", "--data", "{}")
    assert refused.code == 1
    assert "nvcf deploy" in refused.err
    assert "stopped" in await local.ok("down")
    assert await asyncio.wait_for(up.wait(), WAIT) == 0
    assert local.processes() == []
    assert not (local.data / "state.json").exists()


async def test_a_data_folder_is_its_owners_alone(local: Local) -> None:
    await local.start()
    assert stat.S_IMODE(local.data.stat().st_mode) == 0o700
    for name in ("admin.key", "agent.key", "bootstrap-keys.json", "state.json", "signing-key.pem"):
        assert stat.S_IMODE((local.data / name).stat().st_mode) == 0o600, name
    secrets = [(local.data / name).read_text().strip() for name in ("admin.key", "agent.key")]
    lines = [" ".join(process.cmdline()) for process in local.processes()]
    assert len(lines) >= 4
    assert not any(secret in line for secret in secrets for line in lines)


@pytest.mark.parametrize("victim", ["gateway", "broker", "agent", "autoscaler"])
async def test_a_crashed_part_is_told_and_comes_back(local: Local, victim: str) -> None:
    await local.start()
    await local.ok("deploy", local.write("hello.py", HELLO))
    before = await local.status()
    os.kill(before["children"][victim]["pid"], signal.SIGKILL)
    await eventually(lambda: f"the {victim} is back" in local.said())
    assert f"the {victim} ended (killed by SIGKILL), starting it again now" in local.said()
    after = await local.status()
    assert after["children"][victim]["restarts"] == 1
    others = {"gateway", "broker", "agent", "autoscaler"} - {victim}
    assert all(after["children"][each]["pid"] == before["children"][each]["pid"] for each in others)
    assert after["url"] == before["url"]
    async with asyncio.timeout(WAIT):
        while (await local.instances())[0]["state"] != "RUNNING":
            await asyncio.sleep(0.1)
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}


async def test_a_worker_killed_in_the_middle_of_a_request_costs_no_answer(local: Local) -> None:
    await local.start()
    marker = local.folder / "marker"
    file = local.write("slow.py", SLOW)
    await local.ok("deploy", file, "--instances", "2", "--env", f"MARKER={marker}")
    call = asyncio.create_task(local.ok("invoke", "slow", "--data", "x", "--timeout", "55"))
    await eventually(lambda: marker.exists() and bool(marker.read_text()))
    os.kill(int(marker.read_text()), signal.SIGKILL)
    assert "answered by" in await call


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_everything_in_order(local: Local, number: signal.Signals) -> None:
    up = await local.start()
    await local.ok("deploy", local.write("hello.py", HELLO))
    assert len(local.processes()) >= 5
    up.send_signal(number)
    assert await asyncio.wait_for(up.wait(), WAIT) == 0
    assert local.processes() == []
    assert "everything is stopped" in local.said()


async def test_sigkill_of_nvcf_up_leaves_nothing_and_the_next_one_goes_on(local: Local) -> None:
    up = await local.start()
    await local.ok("deploy", local.write("hello.py", HELLO))
    (before,) = await local.instances()
    up.kill()
    await up.wait()
    await eventually(lambda: local.processes() == [])
    assert (await local.run("status")).code == 1
    (local.data / "state.json").unlink()
    await local.start()
    async with asyncio.timeout(WAIT):
        while not (found := await local.instances()) or found[0]["state"] != "RUNNING":
            await asyncio.sleep(0.1)
    assert [each["instanceId"] for each in found] == [before["instanceId"]]
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}


async def test_a_function_that_does_not_start_is_explained_and_taken_back(local: Local) -> None:
    await local.start()
    good = local.write("hello.py", HELLO)
    await local.ok("deploy", good)
    local.write("hello.py", "raise ValueError('no weights at /models')\n")
    failed = await local.run("deploy", good)
    assert failed.code == 1
    assert "ValueError: no weights at /models" in failed.err
    assert "error: the function does not start: exit code 1" in failed.err
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}
    (version,) = (await local.run("functions", "--all", "--json")).json()
    assert version["status"] == "ACTIVE"


async def test_a_second_nvcf_up_on_the_same_folder_is_refused(local: Local) -> None:
    up = await local.start()
    second = await local.run("up")
    assert second.code == 1
    assert f"already up on {local.data} (process {up.pid})" in second.err
    assert "nvcf down" in second.err
    assert up.returncode is None


async def test_a_taken_port_is_named_and_nothing_is_left(local: Local) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = await local.run("up", "--http-port", str(port))
    assert ran.code == 1
    assert f"port {port} is taken" in ran.err
    assert local.processes() == []


async def test_detached_it_outlives_its_terminal(local: Local) -> None:
    out = await local.ok("up", "--detach", "--http-port", "0")
    assert "nvcf down ends everything" in out
    state = await local.status()
    assert state["running"]
    again = await local.run("up", "--detach")
    assert again.code == 1
    assert f"process {state['pid']}" in again.err
    await local.ok("down")
    assert local.processes() == []
    assert "no platform runs" in await local.ok("down")


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


async def test_a_second_ctrl_c_does_not_wait_for_running_requests(local: Local) -> None:
    up = await local.start()
    marker = local.folder / "marker"
    await local.ok("deploy", local.write("slow.py", SLOW), "--env", f"MARKER={marker}")
    call = asyncio.create_task(local.run("invoke", "slow", "--data", "x"))
    await eventually(lambda: marker.exists() and bool(marker.read_text()))
    up.send_signal(signal.SIGINT)
    await eventually(lambda: "stopping" in local.said())
    up.send_signal(signal.SIGINT)
    # The agent alone would give its worker 20 s.
    await asyncio.wait_for(up.wait(), 15)
    # The workers die with their agent; the kernel takes a moment for it.
    await eventually(lambda: local.processes() == [])
    assert (await call).code == 1


async def test_a_broker_of_ones_own(local: Local) -> None:
    async with LocalBroker(local.folder / "elsewhere") as broker:
        options = ["--nats", broker.url, "--nats-credentials", str(broker.credentials_file)]
        await local.start(*options, "--callout-seed", str(broker.callout_seed_file))
        assert set((await local.status())["children"]) == {"gateway", "agent", "autoscaler"}
        await local.ok("deploy", local.write("hello.py", HELLO), "--no-wait")
        assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}
        await local.ok("down", "--kill")
        assert broker.running
        assert local.processes() == []


async def test_a_broker_that_is_not_there_is_told_at_once(local: Local) -> None:
    ran = await local.run("up", "--http-port", "0", "--nats", f"nats://127.0.0.1:{free_port()}")
    assert ran.code == 1
    assert "cannot reach the broker" in ran.err
    assert local.processes() == []


async def test_several_clusters_with_gpus_on_one_machine(local: Local) -> None:
    await local.start("--clusters", "2", "--gpus", "2")
    children = (await local.status())["children"]
    assert set(children) == {"broker", "gateway", "agent-local-1", "agent-local-2", "autoscaler"}
    source = "import os\ndef handler(request):\n    return os.environ['CUDA_VISIBLE_DEVICES']\n"
    file = local.write("devices.py", source)
    deployed = await local.ok("deploy", file, "--gpu", "SIM", "--instances", "4")
    assert "4 instances" in deployed
    before = await local.instances()
    places = Counter((each["clusterId"], each["gpu"], each["visibleDevices"]) for each in before)
    expected = [(f"local-{cluster}", "SIM", device) for cluster in (1, 2) for device in ("0", "1")]
    assert places == Counter(expected)
    assert await local.ok("invoke", "devices", "--data", "x") in ("0", "1")
    shown = await local.ok("instances")
    assert "CLUSTER" in shown
    assert "SIM 1" in shown
    clusters = {each["clusterId"]: each for each in (await local.run("clusters", "--json")).json()}
    pools = [(pool["gpu"], pool["instancesTotal"]) for pool in clusters["local-2"]["pools"]]
    assert pools == [("CPU", 256), ("SIM", 2)]
    listed = await local.ok("clusters")
    assert listed.count("live") == 2
    assert "CPU 256/256, SIM 0/2" in listed
    # There is no more: who has most gives one up for who has none, and gets it back.
    await local.ok("deploy", file, "--name", "more", "--gpu", "SIM")
    assert sorted(Counter(await local.running()).values()) == [1, 3]
    await local.ok("undeploy", "more")
    async with asyncio.timeout(WAIT):
        while len(await local.running()) < 4 or len(set(await local.running())) > 1:
            await asyncio.sleep(0.1)
    before = [each for each in await local.instances() if each["state"] == "RUNNING"]
    # A killed agent's instances come back where they were, with the GPUs they had.
    os.kill(children["agent-local-2"]["pid"], signal.SIGKILL)
    await eventually(lambda: "the agent-local-2 is back" in local.said())
    async with asyncio.timeout(WAIT):
        while sum(each["state"] == "RUNNING" for each in await local.instances()) < 4:
            await asyncio.sleep(0.1)
    after = await local.instances()
    assert {each["instanceId"] for each in before} <= {each["instanceId"] for each in after}
    running = [each for each in after if each["state"] == "RUNNING"]
    assert Counter((each["clusterId"], each["gpu"], each["visibleDevices"]) for each in running) == places
    # More than there is: what is wanted beyond waits, and the command says so.
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
    deployed = await local.ok("deploy", file, "--min", "0", "--max", "2", "--scale-to-zero-delay", "1")
    assert "0 to 2 instances" in deployed
    assert await local.instances() == []
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}
    assert "1 running" in await local.ok("scaling", "hello")
    assert "RUNNING" in await local.ok("events", "hello", "--kind", "instance")
    async with asyncio.timeout(WAIT):
        while await local.instances():
            await asyncio.sleep(0.2)
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}


async def test_a_crashed_autoscaler_comes_back_and_changes_nothing(local: Local) -> None:
    await local.start()
    await local.ok("deploy", local.write("hello.py", HELLO), "--instances", "2")
    before = await local.instances()
    os.kill((await local.status())["children"]["autoscaler"]["pid"], signal.SIGKILL)
    await eventually(lambda: "the autoscaler is back" in local.said())
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}
    await local.ok("deploy", local.write("other.py", HELLO), "--name", "other")
    after = {each["instanceId"]: each for each in await local.instances()}
    assert all(after[each["instanceId"]]["pid"] == each["pid"] for each in before)


async def test_every_process_and_every_instance_serves_metrics_where_nvcf_metrics_says(local: Local) -> None:
    await local.start("--clusters", "2")
    await local.ok("deploy", local.write("hello.py", HELLO))
    await local.hello()

    async def addresses() -> dict[str, str]:
        told = (await local.run("metrics", "--json")).json()
        return {
            **told["platform"],
            **{each["nvcf_function_name"]: each["address"] for each in told["instances"]},
        }

    async with asyncio.timeout(WAIT):
        while len(found := await addresses()) < 5:
            await asyncio.sleep(0.2)
    expected = {
        "gateway": "nvcf_invocation_duration_seconds_count{",
        "agent-local-1": 'nvcf_cluster_gpus{nvcf_cluster_id="local-1"',
        "agent-local-2": 'nvcf_cluster_gpus{nvcf_cluster_id="local-2"',
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
