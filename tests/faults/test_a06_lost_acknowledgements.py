"""A6: an acknowledgement that is lost leaves no object without its bytes, and such an object heals.

Kind: something is undone although nobody knows whether it was done. Kept answers, bodies, assets and large
results are all objects.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from nvcf_broker.connection import connect_broker
from nvcf_broker.errors import BrokerUnavailableError
from nvcf_broker.objects import CHUNK_BYTES, ObjectBucket, ObjectExistsError, ObjectMissingError
from nvcf_broker.requests import ReplyInbox
from nvcf_broker.server import LocalBroker
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.results.idempotency_keys import Fingerprint, IdempotencyKeys
from tests.contract.gateway.test_polling import call
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODES = pytest.mark.parametrize("replace", [False, True])


class LossyRequests:
    """Passes requests on, and loses replies (or requests) about the metadata of objects."""

    def __init__(self, requests: ReplyInbox) -> None:
        self._requests = requests
        self.about = "$O."
        self.lost = 0
        self.unsent = 0
        self.held: asyncio.Event | None = None
        """Set: the next reply is held until it is set."""
        self.waiting = asyncio.Event()

    async def request(
        self, subject: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None
    ) -> Msg:
        """Stand for the broker's inbox."""
        metadata = subject.startswith(self.about) and (".M." in subject or self.about != "$O.")
        if metadata and self.unsent:
            self.unsent -= 1
            raise TimeoutError
        reply = await self._requests.request(subject, payload, timeout=timeout, headers=headers)
        if metadata and self.lost:
            self.lost -= 1
            raise TimeoutError
        if metadata and self.held is not None:
            self.waiting.set()
            await self.held.wait()
        return reply


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ReplyInbox]:
    directory: Path = tmp_path_factory.mktemp("broker")
    async with LocalBroker(directory) as running:
        client = await connect_broker(running.url, running.credentials_file, name="test")
        requests = ReplyInbox(client)
        await requests.start()
        yield requests
        await client.close()


async def parts(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def read(bucket: ObjectBucket, name: str) -> bytes:
    stored = await bucket.find(name)
    assert stored is not None
    return b"".join([chunk async for chunk in bucket.read(stored)])


async def emptied(requests: ReplyInbox, bucket: ObjectBucket, name: str) -> None:
    """Take the chunks of an object away."""
    stored = await bucket.find(name)
    assert stored is not None
    query = json.dumps({"filter": f"$O.{bucket.bucket}.C.{stored.nuid}"}).encode()
    await requests.request(f"$JS.API.STREAM.PURGE.OBJ_{bucket.bucket}", query, timeout=5)


async def chunks(requests: ReplyInbox, bucket: ObjectBucket) -> int:
    query = json.dumps({"subjects_filter": f"$O.{bucket.bucket}.C.>"}).encode()
    reply = await requests.request(f"$JS.API.STREAM.INFO.OBJ_{bucket.bucket}", query, timeout=5)
    return sum((json.loads(reply.data)["state"].get("subjects") or {}).values())


@MODES
@pytest.mark.parametrize("size", [10, 3 * CHUNK_BYTES])
async def test_a_lost_acknowledgement_of_an_object_that_is_stored(
    broker: ReplyInbox, replace: bool, size: int
) -> None:
    lossy = LossyRequests(broker)
    bucket = ObjectBucket(lossy, f"lost_{replace}_{size}")
    lossy.lost = 1
    stored = await bucket.put("x", parts(b"a" * size), replace=replace)
    assert await bucket.find("x") == stored
    assert await read(bucket, "x") == b"a" * size


@MODES
async def test_a_request_that_never_arrived_is_sent_again(broker: ReplyInbox, replace: bool) -> None:
    lossy = LossyRequests(broker)
    bucket = ObjectBucket(lossy, f"unsent_{replace}")
    lossy.unsent = 1
    await bucket.put("x", parts(b"abc"), replace=replace)
    assert await read(bucket, "x") == b"abc"


@MODES
async def test_what_nobody_knows_is_not_undone(broker: ReplyInbox, replace: bool) -> None:
    """All attempts stay without an acknowledgement; one of them may arrive at any time."""
    lossy = LossyRequests(broker)
    bucket = ObjectBucket(lossy, f"unknown_{replace}")
    lossy.unsent = 100
    with pytest.raises(BrokerUnavailableError):
        await bucket.put("x", parts(b"abc"), replace=replace)
    assert await chunks(broker, bucket) == 1
    lossy.unsent = 0
    await bucket.put("x", parts(b"def"), replace=replace)
    assert await read(bucket, "x") == b"def"


@MODES
async def test_a_caller_that_leaves_while_the_object_is_stored(broker: ReplyInbox, replace: bool) -> None:
    lossy = LossyRequests(broker)
    bucket = ObjectBucket(lossy, f"left_{replace}")
    lossy.held = asyncio.Event()
    task = asyncio.create_task(bucket.put("x", parts(b"abc"), replace=replace))
    await lossy.waiting.wait()
    task.cancel()
    await asyncio.sleep(0)
    lossy.held.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert await read(bucket, "x") == b"abc"


async def test_an_object_that_is_there_stays(broker: ReplyInbox) -> None:
    lossy = LossyRequests(broker)
    bucket = ObjectBucket(lossy, "there")
    await bucket.put("x", parts(b"first"), replace=False)
    lossy.lost = 1
    with pytest.raises(ObjectExistsError):
        await bucket.put("x", parts(b"second"), replace=False)
    assert await read(bucket, "x") == b"first"
    assert await chunks(broker, bucket) == 1


async def test_a_read_without_chunks_heals(broker: ReplyInbox) -> None:
    bucket = ObjectBucket(broker, "read")
    await bucket.put("x", parts(b"abc"))
    await emptied(broker, bucket, "x")
    with pytest.raises(ObjectMissingError):
        await read(bucket, "x")
    assert await bucket.find("x") is None


async def test_a_read_of_a_replaced_object_leaves_the_new_one(broker: ReplyInbox) -> None:
    bucket = ObjectBucket(broker, "replaced")
    old = await bucket.put("x", parts(b"abc"))
    await bucket.put("x", parts(b"def"))
    with pytest.raises(ObjectMissingError):
        [chunk async for chunk in bucket.read(old)]
    assert await read(bucket, "x") == b"def"


@MODES
@pytest.mark.parametrize("size", [10, 3 * CHUNK_BYTES])
async def test_a_second_put_heals(broker: ReplyInbox, replace: bool, size: int) -> None:
    bucket = ObjectBucket(broker, f"second_{replace}_{size}")
    await bucket.put("x", parts(b"a" * size), replace=replace)
    await emptied(broker, bucket, "x")
    await bucket.put("x", parts(b"b" * size), replace=replace)
    assert await read(bucket, "x") == b"b" * size
    assert await chunks(broker, bucket) == max(1, size // CHUNK_BYTES)


async def test_a_key_whose_answer_lost_its_bytes_is_free_again(platform: Platform) -> None:
    """What today's callers saw: 503 for 24 hours."""
    version = await platform.deployed_version()
    client = await platform.broker_client()
    try:
        async with peer_worker(platform, version) as worker:
            for attempt in range(2):
                first = asyncio.create_task(
                    call(platform, "POST", version.pexec, b"x", Idempotency_Key="poisoned")
                )
                await (await worker.pull()).answer(b"%d" % attempt)
                answer = await first
                assert answer.body == b"%d" % attempt
                name = base64.urlsafe_b64encode(answer.headers["nvcf-reqid"].encode()).decode()
                query = json.dumps({"last_by_subj": f"$O.nvcf_results_local.M.{name}"}).encode()
                found = await client.request("$JS.API.DIRECT.GET.OBJ_nvcf_results_local", query, timeout=5)
                subject = f"$O.nvcf_results_local.C.{json.loads(found.data)['nuid']}"
                purge = json.dumps({"filter": subject}).encode()
                await client.request("$JS.API.STREAM.PURGE.OBJ_nvcf_results_local", purge, timeout=5)
                await platform.queue_is_empty(version)
                refused = await call(platform, "POST", version.pexec, b"x", Idempotency_Key="poisoned")
                assert (refused.status, refused.headers["retry-after"]) == (503, "0")
    finally:
        await client.close()


async def test_a_lost_acknowledgement_of_a_claim(broker: ReplyInbox, tmp_path: Path) -> None:
    """Nobody would ever free the key of a call that does not know that it has it."""
    config = GatewayConfig(("", 0), ("", 0), "", tmp_path / "key")
    lossy = LossyRequests(broker)
    keys = IdempotencyKeys(lossy, config)
    await keys.ensure()
    lossy.about, lossy.lost = "$KV.nvcf_idempotency.", 1
    claim = await keys.claim("a", "f", "v", "k", Fingerprint("head", "body"))
    assert claim.first
    await keys.release(claim)
    assert (await keys.claim("a", "f", "v", "k", Fingerprint("head", "body"))).first
