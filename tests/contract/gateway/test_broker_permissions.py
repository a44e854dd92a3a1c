"""What a worker's broker connection may do, and how long (protocol.md, section 8), on two gateways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client

from nvcf_gateway.access.signing_keys import SigningKeys
from nvcf_gateway.access.worker_tokens import WorkerTokens
from nvcf_proto.ids import new_id
from tests.support.peers.worker import broker_token
from tests.support.platform.gateways import ACCOUNT, Gateway, Platform, Version, running_platform
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Two gateways on one broker, with a folder of signing keys."""
    directory = tmp_path_factory.mktemp("two")
    (directory / "signing.pem").mkdir()
    async with running_platform(directory, gateways=2) as running:
        yield running


async def status(
    platform: Platform, gateway: Gateway, method: str, path: str, key: str, body: Any = None
) -> int:
    headers = {**platform.authorization(key), "NVCF-POLL-SECONDS": "1"}
    async with platform.session.request(method, gateway.url + path, headers=headers, json=body) as response:
        return response.status


class RawWorker:
    """A raw broker connection with a worker token; what the broker complains about."""

    def __init__(self) -> None:
        self.client = Client()
        self.errors: list[str] = []
        self.closed = asyncio.Event()

    async def connect(self, platform: Platform, token: str, **options: Any) -> None:
        """Connect once, without ever trying again."""

        async def failed(error: Exception) -> None:
            self.errors.append(str(error).lower())

        async def ended() -> None:
            self.closed.set()

        await self.client.connect(
            platform.broker.url,
            token=broker_token(token),
            allow_reconnect=False,
            error_cb=failed,
            closed_cb=ended,
            disconnected_cb=ended,
            **options,
        )

    async def violates(self, word: str) -> None:
        """The broker has complained about it."""
        await eventually(lambda: any("permissions violation" in error for error in self.errors), word)
        self.errors.clear()


def token_of(platform: Platform, version: Version, instance: str, life: float) -> str:
    tokens = WorkerTokens(SigningKeys(platform.directory / "signing.pem"), life=life)
    return tokens.issue(
        function_id=version.function_id,
        version_id=version.id,
        instance_id=instance,
        nca_id=ACCOUNT,
        now=time.time(),
    )[0]


async def test_a_connection_ends_when_its_token_expires(two: Platform) -> None:
    version = await two.deployed_version()
    instance = new_id()
    worker, lasting = RawWorker(), RawWorker()
    await lasting.connect(two, token_of(two, version, instance, 600))
    await worker.connect(two, token_of(two, version, instance, 3))
    try:
        assert worker.client.is_connected
        async with asyncio.timeout(15):
            await worker.closed.wait()
        assert "expired" in str(worker.client.last_error)
        assert lasting.client.is_connected
        with pytest.raises((nats.errors.Error, OSError)):
            await RawWorker().connect(two, token_of(two, version, instance, -1), connect_timeout=3)
    finally:
        await worker.client.close()
        await lasting.client.close()


async def test_a_connection_may_do_what_its_version_needs_in_every_region_and_no_more(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    flags = ("--region", "east", "--regions", "east,west")
    async with running_platform(tmp_path_factory.mktemp("regions"), flags=flags) as platform:
        mine, foreign = await platform.deployed_version(), await platform.deployed_version()
        instance, other = new_id(), new_id()
        worker = RawWorker()
        await worker.connect(platform, token_of(platform, mine, instance, 600))
        try:
            for region in ("east", "west"):
                stream = f"rq_{region}_{mine.id}"
                await worker.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers", b"")
                await worker.client.publish(f"$JS.API.CONSUMER.INFO.{stream}.{stream}_workers", b"")
            await worker.client.subscribe(f"nvcf.cancel.{mine.id}")
            await worker.client.subscribe(f"_INBOX.{mine.id}.{instance}.>")
            await worker.client.flush()
            assert worker.errors == []
            north = f"rq_north_{mine.id}"
            for subject in (
                f"$JS.API.CONSUMER.MSG.NEXT.{north}.{north}_workers",
                f"$JS.API.STREAM.INFO.rq_east_{mine.id}",
                f"$JS.API.CONSUMER.INFO.rq_east_{foreign.id}.rq_east_{foreign.id}_workers",
                f"$JS.API.STREAM.PURGE.rq_east_{mine.id}",
                f"$JS.API.CONSUMER.DURABLE.CREATE.rq_east_{mine.id}.mine",
                f"$JS.API.CONSUMER.CREATE.rq_east_{mine.id}",
                f"$JS.API.DIRECT.GET.rq_east_{mine.id}",
                "$JS.API.STREAM.NAMES",
                "$JS.API.INFO",
                f"_INBOX.{foreign.id}.{other}.1",
                "nvcf.ratelimit.counts",
                "nvcf.ratelimit.members",
                f"nvcf.reply.{foreign.id}.gateway.token",
                "$KV.nvcf_versions.x",
            ):
                await worker.client.publish(subject, b"")
                await worker.violates(subject)
            for subject in (
                f"_INBOX.{mine.id}.{other}.>",
                "_INBOX.>",
                "nvcf.ratelimit.>",
                "nvcf.reply.>",
                "$JS.API.>",
                f"rq.east.{mine.id}.>",
            ):
                await worker.client.subscribe(subject)
                await worker.violates(subject)
        finally:
            await worker.client.close()


async def test_a_reply_of_the_broker_goes_to_the_worker_only(two: Platform) -> None:
    """Where a permitted JetStream request is answered to is the asking worker's choice, and not checked."""
    mine, foreign = await two.deployed_version(), await two.deployed_version()
    worker, platform = RawWorker(), await two.broker_client()
    stream = f"rq_local_{mine.id}"
    try:
        await worker.connect(two, token_of(two, mine, new_id(), 600))
        record = f"$KV.nvcf_versions.{foreign.id}"
        before = (await platform.jetstream().get_last_msg("KV_nvcf_versions", record)).seq
        await worker.client.publish(f"$JS.API.CONSUMER.INFO.{stream}.{stream}_workers", b"", reply=record)
        pull, queue = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers", f"rq_local_{foreign.id}"
        await worker.client.publish(pull, b"1", reply=f"rq.local.{foreign.id}.{new_id()}")
        await worker.client.flush()
        assert await status(two, two.gateway, "POST", mine.pexec, "admin", {}) == 202
        assert (await platform.jetstream().get_last_msg("KV_nvcf_versions", record)).seq == before
        assert (await platform.jetstream().stream_info(queue)).state.messages == 0
    finally:
        await worker.client.close()
        await platform.close()


async def test_wide_inboxes_only_where_the_installation_allows_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with running_platform(tmp_path_factory.mktemp("wide"), flags=("--wide-inbox",)) as platform:
        version = await platform.deployed_version()
        worker = RawWorker()
        await worker.connect(platform, token_of(platform, version, new_id(), 600))
        try:
            await worker.client.subscribe(worker.client.new_inbox())
            await worker.client.flush()
            assert worker.errors == []
            await worker.client.subscribe("nvcf.reply.>")
            await worker.violates("nvcf.reply")
        finally:
            await worker.client.close()
