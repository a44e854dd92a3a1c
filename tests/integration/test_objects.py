"""The streaming object store against a real broker, and against the library's own reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from nvcf_broker.connection import connect_broker
from nvcf_broker.jetstream import JetStream
from nvcf_broker.objects import BucketFullError, ObjectBucket, ObjectExistsError, ObjectMissingError
from nvcf_broker.requests import ReplyInbox
from nvcf_broker.server import LocalBroker

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def connected(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[ReplyInbox, object]]:
    directory: Path = tmp_path_factory.mktemp("broker")
    async with LocalBroker(directory) as broker:
        client = await connect_broker(broker.url, broker.credentials_file, name="test")
        requests = ReplyInbox(client)
        await requests.start()
        yield requests, client
        await client.close()


async def parts(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def read(bucket: ObjectBucket, name: str) -> bytes:
    stored = await bucket.find(name)
    assert stored is not None
    return b"".join([chunk async for chunk in bucket.read(stored)])


async def test_what_is_put_is_read(connected: tuple[ReplyInbox, object]) -> None:
    bucket = ObjectBucket(connected[0], "plain")
    assert await bucket.find("a") is None
    large = bytes(range(256)) * 3000
    stored = await bucket.put("a", parts(large[:100], b"", large[100:]), {"Status": "200"})
    assert (stored.size, stored.headers) == (len(large), {"Status": "200"})
    assert await bucket.find("a") == stored
    assert await read(bucket, "a") == large
    await bucket.put("empty", parts())
    assert await read(bucket, "empty") == b""
    await bucket.put("a", parts(b"second"))
    assert await read(bucket, "a") == b"second"
    with pytest.raises(ObjectMissingError):
        [chunk async for chunk in bucket.read(stored)]
    assert await bucket.delete("a")
    assert not await bucket.delete("a")
    assert await bucket.find("a") is None


async def test_the_library_reads_it_too(connected: tuple[ReplyInbox, object]) -> None:
    bucket = ObjectBucket(connected[0], "shared")
    data = b"0123456789" * 50_000
    await bucket.put("name with / and .", parts(data))
    library = await connected[1].jetstream().object_store("shared")  # type: ignore[attr-defined]
    assert (await library.get("name with / and .")).data == data
    await library.put("theirs", data)
    assert await read(bucket, "theirs") == data


async def test_a_full_bucket_is_reported_and_stores_nothing(connected: tuple[ReplyInbox, object]) -> None:
    bucket = ObjectBucket(connected[0], "small", max_bytes=400_000)
    await bucket.put("one", parts(bytes(200_000)))
    with pytest.raises(BucketFullError):
        await bucket.put("two", parts(bytes(300_000)))
    assert await bucket.find("two") is None
    await bucket.delete("one")
    await bucket.put("two", parts(bytes(300_000)))


async def test_a_source_that_fails_stores_nothing(connected: tuple[ReplyInbox, object]) -> None:
    bucket = ObjectBucket(connected[0], "broken")

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(200_000)
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError):
        await bucket.put("x", broken())
    assert await bucket.find("x") is None
    found = await JetStream(connected[0]).stream_info("OBJ_broken")
    assert found is not None
    assert found.size == 0


async def test_the_first_of_several_writers_wins(connected: tuple[ReplyInbox, object]) -> None:
    bucket = ObjectBucket(connected[0], "first")
    await bucket.ensure()
    results = await asyncio.gather(
        *(bucket.put("x", parts(b"%d" % number * 1000), replace=False) for number in range(5)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, ObjectExistsError) for result in results) == 4, results
    winner = next(number for number, result in enumerate(results) if not isinstance(result, Exception))
    assert await read(bucket, "x") == b"%d" % winner * 1000
    with pytest.raises(ObjectExistsError):
        await bucket.put("x", parts(b"late"), replace=False)
    await bucket.delete("x")
    await bucket.put("x", parts(b"again"), replace=False)
    assert await read(bucket, "x") == b"again"
