"""Secrets with several gateways: changes in the same moment, owners that are gone, keys that are lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nvcf_broker.connection import connect_broker
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.audit import SecretAudit
from nvcf_gateway.secrets.keys import FileKeys, create_sealing_key
from nvcf_gateway.secrets.store import SecretStore
from nvcf_gateway.secrets.upkeep import LOST_OWNER_SECONDS, ORPHAN_SECONDS, SecretUpkeep
from nvcf_proto.ids import new_id
from nvcf_proto.models import SecretSet
from nvcf_proto.models.secrets import version_owner
from tests.support.platform.gateways import ACCOUNT, Platform, running_platform
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


@dataclass
class Clock:
    """A clock that stands still."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def store_of(platform: Platform, keys: Path) -> AsyncIterator[tuple[Registry, SecretStore]]:
    """The secrets as one more gateway has them."""
    client = await connect_broker(platform.broker.url, platform.broker.credentials_file, name="test")
    nothing: Any = None
    try:
        async with contextlib.AsyncExitStack() as stack:
            registry = Registry(client, 1)
            await registry.start(stack)
            yield registry, SecretStore(registry.secrets, FileKeys(keys), nothing, SecretAudit(client))
    finally:
        await client.close()


async def test_changes_at_two_gateways_in_the_same_moment_are_all_there(tmp_path: Path) -> None:
    async with running_platform(tmp_path, gateways=2) as platform:
        version = await platform.deployed_version()

        async def put(number: int) -> None:
            url = platform.gateways[number % 2].url + secrets_path(version)
            body = {"secrets": [{"name": f"S{number}", "value": str(number)}]}
            while True:
                async with platform.session.put(url, json=body, headers=platform.authorization()) as got:
                    if got.status == 204:
                        return
                    # The version is new to this replica, or others were faster again and again.
                    assert got.status in (404, 409), await got.text()

        await asyncio.gather(*(put(number) for number in range(6)))
        expected = [f"S{number}" for number in range(6)]

        async def seen() -> bool:
            return await secret_names(platform, version) == expected

        await eventually(seen, "the first gateway has all of them")
        own = await agent_token(platform, version)
        _, answer, _ = await read_secrets(platform, own, ess_path(version))
        assert answer["data"] == {f"S{number}": str(number) for number in range(6)}


async def test_secrets_without_an_owner_go_and_others_stay(tmp_path: Path) -> None:
    async with running_platform(tmp_path) as platform:
        version = await platform.create_version(secrets=[{"name": "A", "value": VALUE}])
        async with store_of(platform, tmp_path / "sealing.key") as (registry, store):
            clock = Clock()
            upkeep = SecretUpkeep(store, registry, clock)
            gone = await platform.create_version()
            path = f"/v2/nvcf/functions/{gone.function_id}/versions/{gone.id}"
            await platform.call("DELETE", path, expect=204)
            deleted, empty, newer = version_owner(gone.id), version_owner(new_id()), f"volumes.{new_id()}"
            old, lost = version_owner(new_id()), version_owner(new_id())
            for key, at, sealed in (
                (deleted, clock.now, {"A": "sealed"}),
                (empty, clock.now, {}),
                (newer, 0.0, {}),
                (old, clock.now - LOST_OWNER_SECONDS, {"A": "sealed"}),
                (lost, clock.now, {"A": "sealed"}),
            ):
                await store.mirror.put(key, SecretSet(key, ACCOUNT, at, sealed))
            await eventually(lambda: version_owner(version.id) in store.mirror)
            await eventually(lambda: registry.versions.is_deleted(gone.id))
            await upkeep.sweep()
            clock.now += ORPHAN_SECONDS - 1
            await upkeep.sweep()
            assert deleted in store.mirror
            clock.now += 2
            await upkeep.sweep()
            # What is lost may come back from a backup, and needs its secrets then.
            assert sorted(store.mirror.keys()) == sorted([lost, newer, version_owner(version.id)])


async def test_a_lost_key_is_said_once_and_costs_only_what_it_sealed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version(secrets=[{"name": "A", "value": VALUE}])
        create_sealing_key(tmp_path / "other.key")
        lost = await platform.start_gateway("--sealing-keys", str(tmp_path / "other.key"))
        platform.gateways.insert(0, platform.gateways.pop())
        own = await agent_token(platform, version)

        async def refused() -> bool:
            status, answer, _ = await read_secrets(platform, own, ess_path(version))
            return status == 503 and "not among the sealing keys" in str(answer)

        await eventually(refused, "the secret cannot be opened")
        # What is set anew can be read again, and everything else goes on.
        other = await platform.deployed_version(secrets=[{"name": "B", "value": "x"}])
        token = await agent_token(platform, other)
        assert (await read_secrets(platform, token, ess_path(other)))[1] == {"data": {"B": "x"}}
        await put_secrets(platform, version, A="again")
        assert (await read_secrets(platform, own, ess_path(version)))[1] == {"data": {"A": "again"}}
        async with store_of(platform, tmp_path / "sealing.key") as (registry, store):
            upkeep = SecretUpkeep(store, registry)
            await eventually(lambda: version_owner(other.id) in store.mirror)
            with caplog.at_level(logging.ERROR):
                await upkeep.sweep()
                await upkeep.sweep()
            assert caplog.text.count(f"secrets of {version_owner(other.id)} cannot be opened") == 1
        assert VALUE not in lost.child.text()
