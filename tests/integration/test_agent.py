"""The agent as a process: it turns messages into processes and records, also after crashes around it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import psutil
import pytest

from nvcf_proto.compute import EVENTS_STREAM, Event
from nvcf_proto.icms.names import CREATION_STREAM
from nvcf_proto.models import InstanceState
from tests.support.platform.agent_site import HEALTH, STEADY
from tests.support.platform.agents import Site, alive, is_running, running_site
from tests.support.waiting import WAIT, eventually

PENDING, STARTING, RUNNING = InstanceState.PENDING, InstanceState.STARTING, InstanceState.RUNNING
TERMINATING, COMPLETED, FAILED = InstanceState.TERMINATING, InstanceState.COMPLETED, InstanceState.FAILED


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path) as made:
        yield made


async def test_a_creation_message_becomes_a_running_instance_and_a_termination_ends_it(site: Site) -> None:
    await site.start_agent()
    version = await site.version(STEADY)
    orders = await site.create(version, 2)
    first, second = await site.running(version, 2)
    assert {first.id, second.id} == {each.instance_id for each in orders}
    assert {first.request_id, second.request_id} == {each.request_id for each in orders}
    assert first.acknowledged_at is not None
    assert first.pid != second.pid
    assert first.health_port != second.health_port
    assert first.log_path is not None
    log = Path(first.log_path)
    await eventually(lambda: "hello from the function" in log.read_text())
    assert log == site.data / "logs" / "hello" / f"{first.id}.log"
    folders = [site.data / "instances" / each.id for each in (first, second)]
    assert all((folder / "shared").is_dir() for folder in folders)
    await site.end(version, first)
    ended = await site.states(version, COMPLETED, RUNNING)
    (over,) = [each for each in ended if each.state is COMPLETED]
    assert (over.id, over.pid, over.reason) == (first.id, None, "fewer are wanted")
    assert over.draining_since is not None
    assert not alive(first.pid)
    assert alive(second.pid)
    await eventually(lambda: not folders[0].exists())
    assert folders[1].exists()
    assert "hello" in await asyncio.to_thread(log.read_text)


async def test_the_environment_is_the_contracts_and_nothing_of_the_platform(site: Site) -> None:
    dump = "import json\n(shared / 'seen').write_text(json.dumps(dict(os.environ)))\n"
    await site.start_agent()
    version = await site.version(HEALTH + dump + STEADY, MODEL="small", FUNCTION_ID="mine")
    await site.create(version, max_request_concurrency=3)
    (instance,) = await site.running(version)
    seen = json.loads((site.data / "instances" / instance.id / "shared" / "seen").read_text())
    token = seen["NVCF_WORKER_TOKEN"]
    assert jwt.decode(token, options={"verify_signature": False})["req"] == instance.request_id
    assert seen["NVCF_FQDN_GRPC"] == site.platform.gateway.grpc
    assert seen["INSTANCE_ID"] == instance.id
    assert seen["FUNCTION_ID"] == version.function_id
    assert seen["FUNCTION_VERSION_ID"] == version.id
    assert seen["FUNCTION_NAME"] == "hello"
    assert seen["FUNCTION_TAGS"] == "blue"
    assert seen["MODEL"] == "small"
    assert seen["MAX_REQUEST_CONCURRENCY"] == "3"
    assert seen["ATTACHED_GPU_COUNT"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in seen
    assert "NVCF_TEST_SECRET" not in seen
    for secret in (site.broker.credentials_file, site.broker.control_credentials_file):
        assert secret.read_text().strip().split(":")[1] not in json.dumps(seen)
    assert site.platform.cluster_key("local").read_text() not in json.dumps(seen)
    assert instance.pid is not None
    assert token not in " ".join(psutil.Process(instance.pid).cmdline())


async def test_messages_that_come_twice_late_or_in_the_wrong_order_do_no_harm(site: Site) -> None:
    await site.start_agent()
    version = await site.version(STEADY)
    (order,) = await site.create(version)
    await site.send_again(order)
    (before,) = await site.running(version)
    await site.send_again(order)
    (expired,) = await site.create(version, expires_in=-1.0)
    never, _ = await site.announce(version)
    await site.end(version, never)
    await site.states(version, RUNNING, PENDING, COMPLETED)
    subject, body = site.messages[order.request_id]
    stream = site.client.jetstream()
    await stream.publish(subject, b"{broken")
    await stream.publish(subject, body.replace(order.request_id.encode(), b"../../escape"))
    (last,) = await site.create(version)
    await site.until(version, lambda them: sum(map(is_running, them)) == 2)
    found = {each.request_id: each for each in site.of(version)}
    assert found.keys() == {each.request_id for each in (order, expired, never, last)}
    assert (found[order.request_id].pid, found[order.request_id].restarts) == (before.pid, 0)
    await site.end(version, order)
    await site.end(version, order)
    await site.states(version, RUNNING, PENDING, COMPLETED, COMPLETED)
    await site.send_again(order)
    await site.end(version, last)
    await site.states(version, PENDING, COMPLETED, COMPLETED, COMPLETED)

    async def nothing_waits() -> bool:
        return (await stream.stream_info(CREATION_STREAM)).state.messages == 0

    await eventually(nothing_waits, "all messages are acknowledged")


async def test_what_cannot_run_here_is_refused_with_a_reason(site: Site) -> None:
    await site.start_agent()
    version = await site.version(STEADY)
    await site.create(version, gpu="H100")
    await site.until(version, lambda them: any("no GPU H100" in (each.reason or "") for each in them))
    await site.create(version, instance_type="huge")
    await site.until(version, lambda them: any("instance type huge" in (each.reason or "") for each in them))
    image = await site.version(STEADY)
    await site.versions.put(image.id, image.replace(process=None, container_image="image"))
    await site.create(image)
    (refused,) = await site.states(image, FAILED)
    assert refused.category == "unsupported"
    assert "container image" in str(refused.reason)


async def test_what_dies_again_and_again_fails_with_its_last_words(site: Site) -> None:
    await site.start_agent()
    version = await site.version("import sys\nprint('noise')\nsys.exit('no model at /models/x')\n")
    await site.create(version)
    (dying,) = await site.until(version, lambda them: bool(them) and "no model" in (them[0].reason or ""))
    assert dying.state is STARTING
    assert dying.reason == "exit code 1\nno model at /models/x"
    (failed,) = await site.states(version, FAILED)
    assert failed.reason == "crash: exit code 1\nno model at /models/x"
    assert failed.restarts == 5
    await site.free("CPU", 256)


async def test_an_instance_that_is_not_ready_any_more_is_reported_until_it_is_ready(site: Site) -> None:
    script = HEALTH.replace('200 if self.path == "/v1/health/ready"', "200 if not (shared / 'sick').exists()")
    await site.start_agent()
    version = await site.version(script + STEADY[len(HEALTH) :])
    await site.create(version)
    (well,) = await site.running(version)
    sick = site.data / "instances" / well.id / "shared" / "sick"
    sick.touch()
    (ill,) = await site.states(version, STARTING)
    assert ill.reason == "waiting: not ready any more (HTTP 404)"
    assert ill.pid == well.pid
    sick.unlink()
    (again,) = await site.running(version)
    assert (again.pid, again.restarts, again.reason) == (well.pid, 0, None)


async def test_clusters_take_only_their_own_messages(site: Site) -> None:
    await site.start_agent(data=site.folder / "one", cluster="one")
    await site.start_agent(data=site.folder / "two", cluster="two", region="east")
    version = await site.version(STEADY)
    await site.create(version, cluster="one")
    await site.create(version, cluster="two")
    them = await site.running(version, 2)
    ids = site.platform.cluster_ids
    assert {each.cluster_id for each in them} == {ids["one"], ids["two"]}
    regions = {each.name: each.region for each in site.clusters.values()}
    assert regions == {"one": "local", "two": "east"}
    for each in them:
        name = "one" if each.cluster_id == ids["one"] else "two"
        assert (site.folder / name / "instances" / each.id).is_dir()


async def test_heartbeats_go_on_and_states_are_events(site: Site) -> None:
    stream = site.client.jetstream()
    await site.start_agent()
    first = site.clusters.values()[0].heartbeat_at
    version = await site.version(STEADY)
    await site.create(version)
    await site.running(version)
    await site.clusters.wait_for(lambda them: them.values()[0].heartbeat_at > first + 2, WAIT)

    async def states() -> list[str]:
        info = await stream.stream_info(EVENTS_STREAM)
        found = []
        for number in range(1, info.state.last_seq + 1):
            event = Event.from_json((await stream.get_msg(EVENTS_STREAM, number)).data or b"")
            assert (event.kind, event.version_id, event.function_name) == ("instance", version.id, "hello")
            found.append(event.data["state"])
        return found

    async def both() -> bool:
        return await states() == ["STARTING", "RUNNING"]

    await eventually(both, "the events of both states")
