"""A3: whatever tenants store, the control plane goes on: undeploy, revoke, leases and restarts."""

from __future__ import annotations

import contextlib
import fnmatch
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from nats.aio.client import Client

from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.disk import move_control_streams
from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import JetStream
from nvcf_broker.kv import KvMirror
from nvcf_broker.requests import ReplyInbox
from nvcf_broker.server import LocalBroker
from nvcf_proto.budget import LEAST_BUDGET, MIB
from nvcf_proto.ids import new_id
from nvcf_proto.models import FUNCTIONS_BUCKET, Function
from nvcf_proto.stores import STORES, Store
from nvcf_proto.subjects import session_lookup_subject, worker_inbox_prefix
from tests.support.peers.worker import broker_token
from tests.support.platform.gateways import Platform, running_platform
from tests.support.waiting import eventually


@pytest_asyncio.fixture
async def small(tmp_path: Path) -> AsyncIterator[Platform]:
    """A platform whose tenants have 192 MiB of disk, and whose control plane has an account of its own."""
    broker = LocalBroker(tmp_path / "broker", data_max=LEAST_BUDGET)
    flags = ("--nats-control-credentials", str(broker.control_credentials_file), "--sessions", "127.0.0.1:0")
    async with running_platform(tmp_path, broker=broker, flags=flags) as platform:
        yield platform


async def fill(client: BrokerClient) -> None:
    """Store as much as the account of tenants' data takes."""
    requests = ReplyInbox(client)
    await requests.start()
    jetstream = JetStream(requests, timeout=30)
    await jetstream.ensure_stream({"name": "fill", "subjects": ["fill.>"], "storage": "file"})
    for size in (6 * MIB, 64 * 1024, 256):
        with contextlib.suppress(BrokerError):
            for number in range(10_000):
                await jetstream.publish(f"fill.{number}", b"x" * size)


async def test_a3_a_full_store_leaves_the_control_plane_working(small: Platform) -> None:
    version = await small.deployed_version("attacker")
    await small.call("POST", "/v2/nvcf/keys", {"description": "of the attacker", "scopes": ["invoke"]})
    keys = (await small.call("GET", "/v2/nvcf/keys"))["keys"]
    revoked = next(each["id"] for each in keys if each.get("description") == "of the attacker")
    client = await connect_broker(small.broker.url, small.broker.credentials_file, name="attacker")
    try:
        await fill(client)
    finally:
        await client.close()
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    await small.call("DELETE", path)
    await small.call("DELETE", f"/v2/nvcf/keys/{revoked}", expect=204)
    await small.broker.restart()
    await eventually(lambda: small.gateway.child.running, "the gateway goes on")
    await small.start_gateway("--nats-control-credentials", str(small.broker.control_credentials_file))
    await small.create_version("after")
    listed = (await small.call("GET", "/v2/nvcf/functions"))["functions"]
    assert {each["name"] for each in listed} == {"attacker", "after"}


async def test_a3_a_workers_flood_of_session_records_stays_small(small: Platform) -> None:
    version = await small.deployed_version("attacker")
    instance = new_id()
    token = await small.worker_token(version, instance)
    client = Client()
    prefix = worker_inbox_prefix(version.id, instance)
    await client.connect(small.broker.url, token=broker_token(token), inbox_prefix=prefix.encode())
    try:
        refused = await client.request(
            session_lookup_subject("local", version.id, "big"), b"x" * 6 * MIB, timeout=30
        )
        assert "error" in json.loads(refused.data)
        for number in range(5_000):
            await client.publish(session_lookup_subject("local", version.id, f"{number}"), b"x" * 4000)
        await client.flush(timeout=30)
    finally:
        await client.close()
    platform = await connect_broker(small.broker.url, small.broker.credentials_file, name="test")
    try:
        account = await JetStream(platform).account_info()
        assert account.limit is not None
        assert account.stored < account.limit * 0.1
    finally:
        await platform.close()


async def test_a3_records_of_an_earlier_release_move_to_the_reserve(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path / "broker", data_max=LEAST_BUDGET)
    function = Function("8d9f1c1e-0000-4000-8000-000000000001", "kept", "account", 1.0)

    @contextlib.asynccontextmanager
    async def functions(credentials: Path) -> AsyncIterator[KvMirror[Function]]:
        client = await connect_broker(broker.url, credentials, name="test")
        try:
            async with KvMirror(client, FUNCTIONS_BUCKET, Function.from_json, Function.to_json) as mirror:
                await mirror.ready()
                yield mirror
        finally:
            await client.close()

    async with broker:
        async with functions(broker.credentials_file) as mirror:
            await mirror.create(function.id, function)
    move_control_streams(broker.files.store)
    async with broker:
        async with functions(broker.control_credentials_file) as mirror:
            assert mirror.get(function.id) == function


async def test_a3_every_stream_has_the_bounds_of_the_table(small: Platform) -> None:
    await small.deployed_version("one")
    for credentials in (small.broker.credentials_file, small.broker.control_credentials_file):
        client = await connect_broker(small.broker.url, credentials, name="test")
        try:
            found = await JetStream(client).streams(">")
        finally:
            await client.close()
        assert found
        for stream in found:
            assert stream.config["max_msg_size"] > 0, stream.name
            assert any(_is(stream.name, store) for store in STORES), stream.name


def _is(name: str, store: Store) -> bool:
    patterns = (each.replace("_R", "_*").replace("_V", "_*") for each in store.name.split(", "))
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
