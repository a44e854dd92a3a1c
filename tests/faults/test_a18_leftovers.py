"""A18: queues of undeployed versions and dead API keys go; nothing that arrives meanwhile is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nvcf_broker.connection import connect_broker
from nvcf_broker.jetstream import JetStream
from nvcf_broker.requests import ReplyInbox
from nvcf_broker.server import LocalBroker
from nvcf_gateway.queue.cleanup import (
    DEAD_KEY_SECONDS,
    DROP_SECONDS,
    EMPTY_SECONDS,
    Cleanup,
    is_dead,
    verdict,
)
from nvcf_gateway.registry import Registry
from nvcf_proto.ids import new_id
from nvcf_proto.models import ApiKey, Deployment, FunctionVersion, Scope
from nvcf_proto.streams import request_stream_config
from nvcf_proto.subjects import closed_stream_subject, request_stream, request_subject


class Scene:
    """Registry, queues and a clock."""

    def __init__(self, jetstream: JetStream, registry: Registry, requests: ReplyInbox) -> None:
        self.jetstream, self.registry, self.now = jetstream, registry, 1e9
        self.cleanup = Cleanup(requests, registry, lambda: self.now)

    async def version(self, *, requests: int = 0) -> str:
        version_id = new_id()
        record = FunctionVersion(
            id=version_id, function_id=new_id(), name="f", nca_id="a", created_at=0, container_image="x"
        )
        await self.registry.versions.create(version_id, record)
        await self.jetstream.ensure_stream(request_stream_config("local", version_id))
        for _ in range(requests):
            await self.jetstream.publish(request_subject("local", version_id, new_id()), b"x")
        return version_id

    async def messages(self, version_id: str) -> int | None:
        found = await self.jetstream.stream_info(request_stream("local", version_id))
        return None if found is None else found.messages

    async def after(self, seconds: float) -> None:
        await self.cleanup.sweep()
        self.now += seconds
        await self.cleanup.sweep()


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with LocalBroker(tmp_path / "broker") as broker, AsyncExitStack() as stack:
        client = await connect_broker(broker.url, broker.credentials_file, name="test")
        stack.push_async_callback(client.close)
        requests = ReplyInbox(client)
        await requests.start()
        registry = Registry(client, 1)
        await registry.start(stack)
        yield Scene(JetStream(requests), registry, requests)


async def test_a18_empty_queues_go_and_requests_stay_until_their_time(scene: Scene) -> None:
    empty, full, deployed = await scene.version(), await scene.version(requests=3), await scene.version()
    known: Any = await scene.registry.deployments.create(
        deployed, Deployment(version_id=deployed, function_id=new_id(), created_at=0.0)
    )
    assert known
    await scene.after(EMPTY_SECONDS + 1)
    assert (await scene.messages(empty), await scene.messages(full)) == (None, 3)
    assert await scene.messages(deployed) == 0
    await scene.after(DROP_SECONDS)
    assert (await scene.messages(full), await scene.messages(deployed)) == (None, 0)


async def test_a18_a_removal_that_was_cut_off_is_finished_or_taken_back(scene: Scene) -> None:
    empty, full = await scene.version(), await scene.version(requests=2)
    for each in (empty, full):
        stream = request_stream("local", each)
        config = {**request_stream_config("local", each), "subjects": [closed_stream_subject(stream)]}
        await scene.jetstream.update_stream(config)
    await scene.cleanup.sweep()
    assert (await scene.messages(empty), await scene.messages(full)) == (None, 2)
    await scene.jetstream.publish(request_subject("local", full, new_id()), b"x")


async def test_a18_dead_keys_go_but_for_those_of_a_file(scene: Scene) -> None:
    def key(key_id: str, **members: Any) -> ApiKey:
        return ApiKey(key_id, "0" * 64, "a", (Scope.INVOKE,), 0.0, **members)

    keys = {
        "0" * 12: key("0" * 12, created_by="apikey:x", revoked_at=scene.now),
        "1" * 12: key("1" * 12, created_by="apikey:x", expires_at=scene.now),
        "2" * 12: key("2" * 12, created_by="apikey:x"),
        "3" * 12: key("3" * 12, revoked_at=scene.now),
    }
    for key_id, record in keys.items():
        await scene.registry.keys.create(key_id, record)
    await scene.after(DEAD_KEY_SECONDS - 1)
    assert len(scene.registry.keys) == 4
    await scene.after(2)
    assert sorted(scene.registry.keys.keys()) == ["2" * 12, "3" * 12]
    assert not is_dead(keys["3" * 12], scene.now * 2)


@pytest.mark.parametrize(
    ("undeployed_for", "known", "expected"),
    [
        (None, True, "keep"),
        (0.0, True, "keep"),
        (EMPTY_SECONDS, True, "if empty"),
        (DROP_SECONDS, True, "drop"),
        (DROP_SECONDS, False, "if empty"),
    ],
)
def test_a18_what_becomes_of_a_queue(undeployed_for: float | None, known: bool, expected: str) -> None:
    assert verdict(undeployed_for, known=known) == expected
