"""The process backend on the contract: what runs, with which environment, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from nvcf_broker.process import spawn
from tests.support.platform.agent_site import CLUSTER, HEALTH, STEADY, Site, alive
from tests.support.waiting import WAIT, eventually

CLOCKS = Path(__file__).parents[2] / "support" / "clock"
STUBBORN = HEALTH + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + STEADY[len(HEALTH) :]


async def test_a_request_becomes_a_process_with_folder_and_log_and_a_termination_ends_it(site: Site) -> None:
    """protocol.md, section 6.1; protocol.md, section 6.6."""
    await site.start_agent()
    first, second = await site.create_many(site.version(STEADY), 2)
    one, two = await site.running(first, second)
    assert one.pid != two.pid
    assert one.healthPort != two.healthPort
    log = Path(one.logPath)
    assert log == site.data / "logs" / "hello" / f"{first.id}.log"
    await eventually(lambda: "hello from the function" in log.read_text())
    assert (site.home(first) / "shared").is_dir()
    await site.end(first)
    over = await site.terminated(first)
    assert over.pid is None
    assert not alive(one.pid)
    assert alive(two.pid)
    await eventually(lambda: not site.home(first).exists())
    assert site.home(second).exists()
    assert "hello" in await asyncio.to_thread(log.read_text)


async def test_the_environment_is_the_messages_and_nothing_of_the_platform(site: Site) -> None:
    """protocol.md, section 6.3."""
    dump = "import json\n(shared / 'seen').write_text(json.dumps(dict(os.environ)))\n"
    await site.start_agent()
    function = site.version(HEALTH + dump + STEADY, MODEL="small", FUNCTION_ID="mine")
    variables = {"HEALTH_PORT": "1", "INSTANCE_ID": "forged", "CONTAINER_REGISTRIES_CREDENTIALS": "secret"}
    ordered = await site.create(function, variables=variables)
    (instance,) = await site.running(ordered)
    seen = json.loads((site.home(ordered) / "shared" / "seen").read_text())
    assert seen["NVCF_WORKER_TOKEN"] == f"token-of-{ordered.request_id}"
    assert seen["INSTANCE_ID"] == ordered.id
    assert seen["FUNCTION_ID"] == function.function_id
    assert seen["FUNCTION_VERSION_ID"] == function.id
    assert seen["FUNCTION_NAME"] == "hello"
    assert seen["FUNCTION_TAGS"] == "blue,green"
    assert seen["NVCF_FQDN_GRPC"] == "127.0.0.1:1"
    assert seen["MODEL"] == "small"
    assert seen["MAX_REQUEST_CONCURRENCY"] == "3"
    assert seen["ATTACHED_GPU_COUNT"] == "0"
    assert seen["HEALTH_PORT"] == str(instance.healthPort)
    assert "CUDA_VISIBLE_DEVICES" not in seen
    assert "NVCF_TEST_SECRET" not in seen
    assert "CONTAINER_REGISTRIES_CREDENTIALS" not in seen
    assert f"key-of-the-cluster-{CLUSTER}" not in json.dumps(seen)
    assert "token-of" not in " ".join(psutil.Process(instance.pid).cmdline())


async def test_gpus_are_handed_out_counted_and_never_given_twice(site: Site) -> None:
    """protocol.md, section 6.3: the type decides; heartbeats say what is left."""
    dump = "(shared / 'seen').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    await site.start_agent("--gpu", "L40S=4", "--cpu-slots", "0")
    await site.free("L40S", 4)
    assert site.usage("CPU") is None
    function = site.version(HEALTH + dump + STEADY)
    pair = await site.create(
        function, gpu="L40S", type_name="NCP.GPU.L40S_2x", type_value="NCP.GPU.L40S", gpus=2
    )
    await site.running(pair)
    single = await site.create(function, gpu="L40S", gpus=1)
    (first,), (second,) = await site.running(pair), await site.running(single)
    assert (first.visibleDevices, second.visibleDevices) == ("0,1", "2")
    for each, instance in ((pair, first), (single, second)):
        assert (site.home(each) / "shared" / "seen").read_text() == instance.visibleDevices
    await site.free("L40S", 1)
    await site.end(pair)
    await site.free("L40S", 3)
    again = await site.create(function, gpu="L40S", gpus=3)
    (new,) = await site.running(again)
    assert new.visibleDevices == "0,1,3"


async def test_a_killed_worker_restarts_as_the_same_instance_with_its_folder(site: Site) -> None:
    """protocol.md, section 6.6: the process backend does what a kubelet does for a container."""
    await site.start_agent()
    ordered = await site.create(site.version(STEADY))
    (before,) = await site.running(ordered)
    kept = site.home(ordered) / "shared" / "kept"
    kept.write_text("here")
    os.kill(before.pid, signal.SIGKILL)
    after = await site.until(ordered, lambda seen: seen.state == "running" and seen.pid != before.pid)
    assert after.restarts == 1
    assert kept.read_text() == "here"
    assert site.icms.states(ordered.id)[-2:] in (["starting", "running"], ["running"])


async def test_what_dies_again_and_again_fails_with_its_last_words(site: Site) -> None:
    """protocol.md, section 6.6: container-restart-loop, with the end of the log."""
    await site.start_agent()
    ordered = await site.create(site.version("import sys\nprint('x')\nsys.exit('no model at /models/x')\n"))
    dying = await site.until(ordered, lambda seen: "no model" in (seen.reason or ""))
    assert dying.state == "starting"
    failed = await site.terminated(ordered)
    assert failed.report["status"] == "instance-terminated-by-service"
    assert (failed.cause, failed.category, failed.restarts) == ("container-restart-loop", "crash", 5)
    log = failed.report["healthInfo"]["errorLog"]
    assert log.startswith("pod terminated due to state container-restart-loop: exit code 1\n---\n")
    assert "no model at /models/x" in log
    await site.free("CPU", 256)


async def test_a_python_that_does_not_exist_is_named(site: Site) -> None:
    """protocol.md, section 6.6: create-container-error."""
    await site.start_agent()
    nowhere = str(site.folder / "nowhere" / "bin" / "python")
    ordered = await site.create(site.version(STEADY, python=nowhere))
    await site.until(ordered, lambda seen: nowhere in (seen.reason or ""))
    failed = await site.terminated(ordered)
    assert failed.cause == "create-container-error"


async def test_an_instance_that_is_not_ready_any_more_is_reported_until_it_is_ready(site: Site) -> None:
    """protocol.md, section 6.6: running, starting, running."""
    script = HEALTH.replace('200 if self.path == "/v1/health/ready"', "200 if not (shared / 'sick').exists()")
    await site.start_agent()
    ordered = await site.create(site.version(script + STEADY[len(HEALTH) :]))
    (well,) = await site.running(ordered)
    sick = site.home(ordered) / "shared" / "sick"
    sick.touch()
    ill = await site.state(ordered, "starting")
    assert ill.reason == "waiting: not ready any more (HTTP 404)"
    assert (ill.pid, ill.readyAt) == (well.pid, None)
    sick.unlink()
    (again,) = await site.running(ordered)
    assert (again.pid, again.restarts, again.reason) == (well.pid, 0, None)


async def test_what_never_gets_ready_fails(site: Site) -> None:
    """protocol.md, section 6.6: degraded-worker."""
    await site.start_agent("--max-ready-seconds", "0.5")
    ordered = await site.create(site.version(HEALTH + "while True:\n    time.sleep(0.05)\n"))
    failed = await site.terminated(ordered)
    assert (failed.cause, failed.category) == ("degraded-worker", "not-ready")
    assert failed.reason.startswith("not ready after 0.5 s")


async def test_a_worker_that_does_not_leave_is_killed_with_its_group_after_the_grace_period(
    site: Site,
) -> None:
    """protocol.md, section 6.4."""
    await site.start_agent("--grace", "0.5")
    helper = "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    note = "(shared / 'helper').write_text(str(p.pid))\n"
    function = site.version(STUBBORN.replace("become_ready()\n", f"{helper}{note}become_ready()\n", 1))
    ordered = await site.create(function)
    (instance,) = await site.running(ordered)
    other = int((site.home(ordered) / "shared" / "helper").read_text())
    await site.end(ordered)
    await site.state(ordered, "shutting-down")
    await site.terminated(ordered)
    assert not alive(instance.pid)
    assert not alive(other)


async def test_clusters_take_only_their_own_messages(site: Site) -> None:
    """protocol.md, section 6.2: the filter of a cluster's consumer."""
    one, two = "cluster-1", "cluster-2"
    await site.start_agent(cluster=one, data=site.folder / one)
    await site.start_agent(cluster=two, data=site.folder / two)
    function = site.version(STEADY)
    first, second = await site.create(function, one), await site.create(function, two)
    await site.running(first, second)
    for ordered, cluster in ((first, one), (second, two)):
        assert (site.folder / cluster / "instances" / ordered.id).is_dir()
        (call,) = site.icms.of_kind("acknowledge", ordered.request_id)
        assert call.headers["X-Nv-Cluster-Id"] == cluster


async def test_limits_that_cannot_be_enforced_are_reported_and_instances_still_run(site: Site) -> None:
    nowhere = site.folder / "no-control-group"
    await site.start_agent("--instance-type", "process,memory=64M,cpus=0.5", "--cgroup", str(nowhere))
    assert "memory and cpu limits of instance types are not enforced: No such file or directory" in site.log()
    await site.running(await site.create(site.version(STEADY)))


async def test_ended_instances_are_known_until_their_order_expires(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """protocol.md, section 6.3: a late copy makes nothing."""
    monkeypatch.setenv("PYTHONPATH", str(CLOCKS))
    monkeypatch.setenv("NVCF_TEST_CLOCKS", str(tmp_path))
    await site.start_agent("--keep-finished", "1")
    ordered = await site.create(site.version(STEADY), expiresAt=time.time() + 3600)
    known = site.data / "requests" / f"{ordered.id}.json"
    await site.running(ordered)
    await site.end(ordered)
    over = await site.terminated(ordered)
    assert known.exists()
    (tmp_path / "nvcf_agent").write_text("3700")
    await eventually(lambda: not known.exists())
    assert await asyncio.to_thread(Path(over.logPath).exists)


async def test_a_second_agent_on_the_same_folder_is_refused_in_one_line(site: Site) -> None:
    await site.start_agent()
    second = await spawn(site.command(), stderr=asyncio.subprocess.PIPE)
    _, errors = await asyncio.wait_for(second.communicate(), WAIT)
    assert second.returncode == 1
    assert "another agent runs on" in errors.decode().splitlines()[-1]
    assert "Traceback" not in errors.decode()
