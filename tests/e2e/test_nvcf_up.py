"""The `nvcf` command as a user runs it: a whole platform on one machine, with crashes."""

import asyncio
import json
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nvcf_broker.process import free_port
from nvcf_broker.server import LocalBroker
from tests.support.platform.nvcf_command import HELLO, SLOW, WAIT, Local, nvcf_commands
from tests.support.waiting import eventually


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Local]:
    async with nvcf_commands(tmp_path) as made:
        yield made


async def test_from_start_to_response_to_stop(local: Local) -> None:
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
    for name in (
        "admin.key",
        "agent.key",
        "bootstrap-keys.json",
        "state.json",
        "signing-key.pem",
        "sealing-keys/0001.key",
    ):
        assert stat.S_IMODE((local.data / name).stat().st_mode) == 0o600, name
    secrets = [
        (local.data / name).read_text().strip()
        for name in ("admin.key", "agent.key", "sealing-keys/0001.key")
    ]
    lines = [" ".join(process.cmdline()) for process in local.processes()]
    assert len(lines) >= 4
    assert not any(secret in line for secret in secrets for line in lines)


@pytest.mark.parametrize("victim", ["gateway", "broker", "agent", "autoscaler"])
async def test_a_crashed_process_is_reported_and_restarted(local: Local, victim: str) -> None:
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
    await eventually(local.serves, "an instance runs")
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}


async def test_a_worker_killed_during_a_request_costs_no_response(local: Local) -> None:
    await local.start()
    marker = shared_file(local.folder / "marker")
    file = local.write("slow.py", SLOW)
    await local.ok("deploy", file, "--instances", "2", "--env", f"MARKER={marker}")
    call = asyncio.create_task(local.ok("invoke", "slow", "--data", "x", "--timeout", "55"))
    await eventually(lambda: marker.exists() and bool(marker.read_text()))
    os.kill(int(marker.read_text()), signal.SIGKILL)
    assert "answered by" in await call


def shared_file(path: Path) -> Path:
    """Make a file in which a function can write: as root, instances have a user of their own."""
    path.touch()
    path.chmod(0o666)
    return path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_everything_in_order(local: Local, number: signal.Signals) -> None:
    up = await local.start()
    await local.ok("deploy", local.write("hello.py", HELLO))
    assert len(local.processes()) >= 5
    up.send_signal(number)
    assert await asyncio.wait_for(up.wait(), WAIT) == 0
    assert local.processes() == []
    assert "everything is stopped" in local.said()


async def test_sigkill_of_nvcf_up_leaves_no_process_and_the_next_one_restores_all(local: Local) -> None:
    up = await local.start()
    await local.ok("deploy", local.write("hello.py", HELLO))
    (before,) = await local.instances()
    up.kill()
    await up.wait()
    await eventually(lambda: local.processes() == [])
    assert (await local.run("status")).code == 1
    (local.data / "state.json").unlink()
    await local.start()
    await eventually(local.serves, "an instance runs")
    assert [each["instanceId"] for each in await local.instances()] == [before["instanceId"]]
    assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}


async def test_a_function_that_does_not_start_is_explained_and_rolled_back(local: Local) -> None:
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


async def test_a_second_ctrl_c_does_not_wait_for_running_requests(local: Local) -> None:
    up = await local.start()
    marker = shared_file(local.folder / "marker")
    await local.ok("deploy", local.write("slow.py", SLOW), "--env", f"MARKER={marker}")
    call = asyncio.create_task(local.run("invoke", "slow", "--data", "x"))
    await eventually(lambda: marker.exists() and bool(marker.read_text()))
    up.send_signal(signal.SIGINT)
    await eventually(lambda: "stopping" in local.said())
    up.send_signal(signal.SIGINT)
    # The agent without `nvcf up` would give its worker 20 s.
    await asyncio.wait_for(up.wait(), 15)
    # The kernel kills the workers together with their agent. That needs a moment.
    await eventually(lambda: local.processes() == [])
    assert (await call).code == 1


async def test_a_broker_of_ones_own(local: Local) -> None:
    async with LocalBroker(local.folder / "elsewhere") as broker:
        options = ["--nats", broker.url, "--nats-credentials", str(broker.credentials_file)]
        refused = await local.run("up", *options)
        assert (refused.code, "--nats-control-credentials" in refused.err) == (2, True)
        options += ["--nats-control-credentials", str(broker.control_credentials_file)]
        await local.start(*options, "--callout-seed", str(broker.callout_seed_file))
        assert set((await local.status())["children"]) == {"gateway", "agent", "autoscaler"}
        await local.ok("deploy", local.write("hello.py", HELLO), "--no-wait")
        assert json.loads(await local.hello()) == {"greeting": "Hello, Ada!"}
        await local.ok("down", "--kill")
        assert broker.running
        assert local.processes() == []


async def test_a_missing_broker_is_reported_at_once(local: Local) -> None:
    ran = await local.run("up", "--http-port", "0", "--nats", f"nats://127.0.0.1:{free_port()}")
    assert ran.code == 1
    assert "cannot reach the broker" in ran.err
    assert local.processes() == []
