"""Secrets that the broker has lost are not the same as none (docs/reference/protocol.md, section 6.9)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from nvcf_broker.connection import connect_broker
from nvcf_broker.jetstream import JetStream
from tests.support.platform.gateways import Platform, running_platform
from tests.support.platform.secrets import (
    VALUE,
    agent_token,
    ess_path,
    put_secrets,
    read_secrets,
    secret_names,
    secrets_path,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path_factory.mktemp("lost")) as running:
        yield running


async def lose_secrets(platform: Platform) -> None:
    """Delete the bucket, as if its files were gone, and wait until it is there again."""
    broker = platform.broker
    client = await connect_broker(broker.url, broker.credentials_file, name="test")
    try:
        jetstream = JetStream(client)
        assert await jetstream.delete_stream("KV_nvcf_secrets")

        async def again() -> bool:
            return await jetstream.stream_info("KV_nvcf_secrets") is not None

        await eventually(again, "the bucket is there again", 30)
    finally:
        await client.close()


async def test_lost_secrets_are_no_empty_ones(platform: Platform) -> None:
    """An agent keeps what it has at 503, and starts nothing without what it needs."""
    created = await platform.deployed_version(secrets=[{"name": "A", "value": VALUE}])
    later, none, removed = [await platform.deployed_version() for _ in range(3)]
    await put_secrets(platform, later, B="2")
    await put_secrets(platform, removed, C="3")
    await platform.call("DELETE", secrets_path(removed), expect=204)
    tokens = {each.id: await agent_token(platform, each) for each in (created, later, none, removed)}
    tags = {}
    for each in (created, later, none, removed):
        status, answer, tags[each.id] = await read_secrets(platform, tokens[each.id], ess_path(each))
        assert status == 200
    assert answer == {"data": {}}
    await lose_secrets(platform)

    async def lost() -> bool:
        return not await secret_names(platform, created)

    await eventually(lost, "the gateway has lost them", 30)
    for each in (created, later):
        for tag in ("", tags[each.id]):
            status, problem, _ = await read_secrets(platform, tokens[each.id], ess_path(each), tag=tag)
            assert (status, problem["detail"]) == (503, "the secrets are lost: set them again")
    assert (await read_secrets(platform, tokens[none.id], ess_path(none)))[:2] == (200, {"data": {}})
    status, _, _ = await read_secrets(platform, tokens[none.id], ess_path(none), tag=tags[none.id])
    assert status == 304
    # Set again, they are there again.
    await put_secrets(platform, later, B="4")
    assert (await read_secrets(platform, tokens[later.id], ess_path(later), tag=tags[later.id]))[:2] == (
        200,
        {"data": {"B": "4"}},
    )


async def test_a_version_does_not_show_what_it_remembers(platform: Platform) -> None:
    version = await platform.deployed_version(secrets=[{"name": "A", "value": VALUE}])
    shown = await platform.call("GET", f"/v2/nvcf/functions/{version.function_id}/versions/{version.id}")
    assert "hasSecrets" not in shown["function"]
