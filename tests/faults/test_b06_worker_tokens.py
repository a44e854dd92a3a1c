"""B6: a worker token worked after its version was undeployed and its instance gone, and renewed itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import nats.errors
import pytest
from nats.aio.client import Client

from nvcf_broker.connection import connect_broker
from nvcf_broker.kv import KvMirror
from nvcf_proto.ids import new_id
from nvcf_proto.models import DEPLOYMENTS_BUCKET, INSTANCES_BUCKET, Deployment, Instance, InstanceState
from tests.support.peers.worker import broker_token, connect_once
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.platform.processes import end
from tests.support.waiting import eventually

FLAGS = ("--region", "here", "--regions", "here")


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path, flags=FLAGS) as made:
        yield made


class Connection:
    """A worker's raw broker connection with one pull open, which is never given up by itself."""

    def __init__(self, version: Version, instance: str) -> None:
        self.version, self.instance = version, instance
        self.client = Client()
        self.ended = asyncio.Event()

    async def open(self, platform: Platform, token: str) -> Connection:
        async def ended() -> None:
            self.ended.set()

        inbox = f"_INBOX.{self.version.id}.{self.instance}"
        await self.client.connect(
            platform.broker.url,
            token=broker_token(token),
            name="any name",
            allow_reconnect=False,
            connect_timeout=3,
            inbox_prefix=inbox.encode(),
            closed_cb=ended,
            disconnected_cb=ended,
        )
        stream = f"rq_here_{self.version.id}"
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers"
        await self.client.subscribe(f"{inbox}.pull")
        pull = {"batch": 10, "expires": 300_000_000_000}
        await self.client.publish(subject, json.dumps(pull).encode(), reply=f"{inbox}.pull")
        await self.client.flush()
        return self


async def refused(platform: Platform, version: Version, instance: str, token: str) -> None:
    """A token neither connects to the broker nor renews itself."""
    with pytest.raises((nats.errors.Error, OSError)):
        async with asyncio.timeout(15):
            await Connection(version, instance).open(platform, token)
    with pytest.raises(grpc.RpcError) as error:
        await connect_once(platform.gateway.grpc, token, instance, version.function_id, version.id)
    assert error.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    assert "void" in str(error.value.details())


def record(version: Version, instance: str, state: InstanceState) -> Instance:
    now = time.time()
    return Instance(
        id=instance,
        function_id=version.function_id,
        version_id=version.id,
        cluster_id="c",
        state=state,
        created_at=now,
        updated_at=now,
        request_id=instance,
    )


@pytest.mark.parametrize("last", [InstanceState.COMPLETED, InstanceState.FAILED, None])
async def test_an_instance_that_has_ended_is_cut_off_and_others_are_not(
    platform: Platform, last: InstanceState | None
) -> None:
    version = await platform.deployed_version()
    client = await connect_broker(platform.broker.url, platform.broker.credentials_file, name="test")
    try:
        async with KvMirror(client, INSTANCES_BUCKET, Instance.from_json, Instance.to_json) as instances:
            one, other, by_hand = new_id(), new_id(), new_id()
            for each in (one, other):
                await instances.create(f"{version.id}.{each}", record(version, each, InstanceState.RUNNING))
            tokens = dict.fromkeys((one, other, by_hand), "")

            async def known() -> bool:
                listed = await platform.call("GET", "/v2/nvcf/instances")
                return len(listed["instances"]) == 2

            await eventually(known, "the gateway knows the instances")
            for each in tokens:
                tokens[each] = await platform.worker_token(version, each, has_record=each != by_hand)
            opened = {
                each: await Connection(version, each).open(platform, token) for each, token in tokens.items()
            }
            # A connection made before the gateway's restart is not forgotten.
            await end(platform.gateways.pop().child)
            await platform.start_gateway(*FLAGS)
            for each in (one, other):
                draining = record(version, each, InstanceState.TERMINATING)
                await instances.put(f"{version.id}.{each}", draining)
            if last is None:
                await instances.delete(f"{version.id}.{one}")
            else:
                await instances.put(f"{version.id}.{one}", record(version, one, last))
            await eventually(opened[one].ended.is_set, "the connection of the ended instance is closed")
            assert not opened[other].ended.is_set(), "an instance that drains keeps its connection"
            assert not opened[by_hand].ended.is_set()
            await refused(platform, version, one, tokens[one])
            for each in (other, by_hand):
                await connect_once(platform.gateway.grpc, tokens[each], each, version.function_id, version.id)
                await opened[each].client.close()
    finally:
        await client.close()


async def test_a_worker_without_an_instance_record_ends_with_its_deployment(platform: Platform) -> None:
    version, instance = await platform.deployed_version(), new_id()
    token = await platform.worker_token(version, instance)
    worker = await Connection(version, instance).open(platform, token)
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    await platform.call("DELETE", path)
    await refused(platform, version, instance, token)
    assert not worker.ended.is_set(), "it has time to finish what it holds"
    await platform.deploy(version)
    client = await connect_broker(platform.broker.url, platform.broker.credentials_file, name="test")
    try:
        async with KvMirror(client, DEPLOYMENTS_BUCKET, Deployment.from_json, Deployment.to_json) as mirror:
            await mirror.wait_for(lambda known: version.id in known, 20)
            # As if it were deployed again later than the clocks of two gateways may differ.
            later = time.time() + 60
            await mirror.put(version.id, mirror.values()[0].replace(created_at=later))
    finally:
        await client.close()
    await eventually(worker.ended.is_set, "a worker of an earlier deployment gets no requests")
    await refused(platform, version, instance, token)
