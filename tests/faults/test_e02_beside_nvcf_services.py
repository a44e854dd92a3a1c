"""E2 to E4, and errors of exec: what NVIDIA's own programs and callers meet at our gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from tests.support.peers.worker import Work, peer_worker
from tests.support.platform.gateways import Platform, running_platform
from tests.support.platform.pexec import call, pulled

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    directory: Path = tmp_path_factory.mktemp("platform")
    async with running_platform(directory, flags=("--wide-inbox",)) as started:
        yield started


async def test_e2_the_response_of_another_services_request_is_not_taken(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        own, work = await pulled(platform, worker, version.pexec)
        foreign = nvcf_pb2.WorkerInvokeFunctionRequest()
        foreign.CopyFrom(work.request)
        foreign.requestId = new_id()
        service = await platform.broker_client()
        try:
            subject = f"rq.local.{version.id}.{foreign.requestId}"
            await service.request(subject, foreign.SerializeToString(), timeout=10)
            lookup = f"nvcf.attach.{version.id}"
            with pytest.raises(TimeoutError):
                await worker.client.request(lookup, foreign.requestId.encode(), timeout=1)
            answered = await worker.client.request(lookup, work.request.requestId.encode(), timeout=10)
            assert nvcf_pb2.StatelessConfig.FromString(answered.data).connectionConfigs
        finally:
            await service.close()
        await work.answer(b"own")
        assert (await own).body == b"own"


async def _post_head_only(work: Work, length: int) -> bytes:
    """Announce a longer body than what follows, as NVIDIA's worker does. Returns the gateway's answer."""
    target = urlsplit(work.connection.targetURI)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nX-Kind: head\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    writer.write(
        b"POST /v2/nvcf/worker/request-attach HTTP/1.1\r\nHost: gateway\r\n"
        b"Authorization: Bearer %b\r\nContent-Type: application/octet-stream+h1\r\n"
        b"Content-Length: %d\r\n\r\n%b"
        % (work.connection.responseAuthorizationToken.encode(), len(head) + length, head)
    )
    answer = await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    return answer


async def test_e3_the_answer_to_head_is_complete_with_its_head(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(
            platform, worker, "/any", data=None, method="HEAD", function_id=version.function_id
        )
        assert (await _post_head_only(work, 1000)).startswith(b"HTTP/1.1 200")
        await work.ack()
        answer = await task
        assert (answer.status, answer.headers["content-length"]) == (200, "1000")
        assert answer.headers["x-kind"] == "head"


async def test_e4_the_first_202_of_a_kept_call_does_not_come_late(platform: Platform) -> None:
    """Compared with a call that waits twice as long: a first 202 that is two seconds late comes after it."""
    kept, plain = await platform.deployed_version(), await platform.deployed_version(keep_queued=False)
    loop = asyncio.get_running_loop()

    async def ended(path: str, seconds: str) -> tuple[int, float]:
        status = (await call(platform, path, NVCF_POLL_SECONDS=seconds)).status
        return status, loop.time()

    first, second = await asyncio.gather(ended(kept.pexec, "2"), ended(plain.pexec, "4"))
    assert (first[0], second[0]) == (202, 504)
    assert first[1] < second[1]


async def test_errors_of_exec_carry_detail_and_headers(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        body = json.dumps({"requestBody": {}}).encode()
        task, work = await pulled(platform, worker, version.exec, data=body)
        problem = {"type": "urn:x", "title": "Too Many Requests", "status": 429, "detail": "one at a time"}
        text = json.dumps(problem).encode()
        await work.answer(
            text,
            "429 Too Many Requests",
            "Content-Type: application/problem+json",
            f"Content-Length: {len(text)}",
            "Retry-After: 5",
            "X-Why: busy",
        )
        answer = await task
        assert (answer.status, answer.headers["retry-after"], answer.headers["x-why"]) == (429, "5", "busy")
        assert answer.headers["content-type"].startswith("application/json")
        told = json.loads(answer.body)
        assert (told["errorCode"], told["status"], told["detail"]) == (429, "errored", "one at a time")
