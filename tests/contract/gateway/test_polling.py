"""202 and what follows: polls, kept requests, stored results (protocol.md, sections 2 and 4)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from nvcf_proto.pb import nvcf_pb2
from tests.support.peers.worker import PeerWorker, Work, peer_worker
from tests.support.platform.gateways import Gateway, Platform, Version

pytestmark = pytest.mark.asyncio(loop_scope="module")

PEXEC = "/v2/nvcf/pexec/status/"
EXEC = "/v2/nvcf/exec/status/"


class Answer:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def call(
    platform: Platform,
    method: str,
    path: str,
    data: Any = None,
    *,
    key: str = "admin",
    gateway: Gateway | None = None,
    **headers: str,
) -> Answer:
    sent = {
        **platform.authorization(key),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    url = (gateway or platform.gateway).url + path
    async with platform.session.request(method, url, data=data, headers=sent) as response:
        return Answer(response.status, response.headers, await response.read())


async def progress(platform: Platform, worker: PeerWorker, version: Version) -> Work:
    """A request that its worker has answered 202."""
    task = asyncio.create_task(call(platform, "POST", version.pexec, b"work"))
    work = await worker.pull()
    await work.post(b"HTTP/1.1 202 Accepted\r\nNVCF-PERCENT-COMPLETE: 10\r\n\r\n")
    answer = await task
    assert (answer.status, answer.headers["nvcf-status"]) == (202, "in-progress")
    assert answer.headers["nvcf-percent-complete"] == "10"
    return work


async def polled(worker: PeerWorker, request_id: str) -> tuple[asyncio.Future[Work], Any]:
    """Subscribe to polls of a request as the worker that holds it; answers arrive in the future."""
    # A worker's own connection may not subscribe to foreign polls: the platform user stands in for it.
    client = await worker_client(worker)
    future: asyncio.Future[Work] = asyncio.get_running_loop().create_future()

    async def asked(message: Any) -> None:
        request = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(message.data)
        await message.respond(b"")
        if not future.done():
            future.set_result(Work(message, request, worker.session, client))

    await client.subscribe(f"rq_polling.{request_id}", cb=asked)
    await client.flush(timeout=5)
    return future, client


async def worker_client(worker: PeerWorker) -> Any:
    return await worker.platform.broker_client()


async def test_progress_then_result_by_polls(platform: Platform) -> None:
    version = await platform.deployed_version(inferenceUrl="/infer")
    async with peer_worker(platform, version) as worker:
        work = await progress(platform, worker, version)
        request_id = work.request.requestId
        for line, expected in (("202 Accepted", "in-progress"), ("200 OK", "fulfilled")):
            future, client = await polled(worker, request_id)
            task = asyncio.create_task(call(platform, "GET", PEXEC + request_id, X_Mine="1"))
            poll = await asyncio.wait_for(future, 10)
            assert poll.request.requestId == request_id
            assert (poll.request.requestMethod, poll.request.requestPath) == ("GET", "/infer")
            assert not poll.request.HasField("requestBody")
            assert not poll.connection.HasField("requestAuthorizationToken")
            assert poll.connection.responseAuthorizationToken != work.connection.responseAuthorizationToken
            assert poll.headers["x-mine"] == "1"
            await poll.post(f"HTTP/1.1 {line}\r\n\r\nbody".encode())
            answer = await task
            assert answer.headers["nvcf-status"] == expected
            assert answer.headers["nvcf-reqid"] == request_id
            assert answer.body == b"body"
            await client.close()
        await work.ack()
        gone = await call(platform, "GET", PEXEC + request_id)
        assert gone.status == 404


async def test_exec_polls_are_wrapped(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        work = await progress(platform, worker, version)
        request_id = work.request.requestId
        future, client = await polled(worker, request_id)
        task = asyncio.create_task(call(platform, "GET", EXEC + request_id))
        poll = await asyncio.wait_for(future, 10)
        await poll.post(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"a": 1}')
        answer = await task
        assert answer.json == {
            "reqId": request_id, "status": "fulfilled", "percentComplete": 100, "response": {"a": 1},
        }  # fmt: skip
        await work.ack()
        await client.close()


async def test_nobody_works_on_it_is_504(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        work = await progress(platform, worker, version)
        await work.ack()
        await platform.queue_is_empty(version)
        answer = await call(platform, "GET", PEXEC + work.request.requestId)
        assert (answer.status, answer.json["detail"]) == (
            504,
            "worker did not acknowledge the status request.",
        )


@pytest.mark.parametrize("request_id", ["3b241101-e2bb-4255-8caf-4136c566a962", "not-a-uuid"])
async def test_unknown_ids_are_404(platform: Platform, request_id: str) -> None:
    for method, path in (("GET", PEXEC), ("GET", EXEC), ("DELETE", PEXEC)):
        answer = await call(platform, method, path + request_id)
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_polls_need_the_right_key(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        work = await progress(platform, worker, version)
        path = PEXEC + work.request.requestId
        for key, status in (("foreign", 404), ("list", 403)):
            assert (await call(platform, "GET", path, key=key)).status == status
            assert (await call(platform, "DELETE", path, key=key)).status == status
        await work.ack()


async def kept(platform: Platform, version: Version, data: bytes = b"later", path: str = "") -> str:
    """A request that nobody took within the poll time; its id."""
    answer = await call(platform, "POST", path or version.pexec, data, NVCF_POLL_SECONDS="1")
    assert (answer.status, answer.headers["nvcf-status"], answer.body) == (202, "pending-evaluation", b"")
    return str(answer.headers["nvcf-reqid"])


async def test_a_queued_request_outlives_its_poll_time(platform: Platform) -> None:
    version = await platform.deployed_version()
    request_id = await kept(platform, version)
    still = await call(platform, "GET", PEXEC + request_id, NVCF_POLL_SECONDS="1")
    assert (still.status, still.headers["nvcf-status"]) == (202, "pending-evaluation")
    async with peer_worker(platform, version) as worker:
        waiting = asyncio.create_task(call(platform, "GET", PEXEC + request_id))
        work = await worker.pull()
        assert (work.request.requestId, work.request.requestBody) == (request_id, b"later")
        busy = await call(platform, "GET", PEXEC + request_id, NVCF_POLL_SECONDS="1")
        assert (busy.status, busy.headers["nvcf-status"]) == (202, "in-progress")
        assert (await work.answer(b"done", "200 OK", "X-Mine: 1"))[0] == 200
        answer = await waiting
        assert (answer.status, answer.body, answer.headers["x-mine"]) == (200, b"done", "1")
        assert answer.headers["nvcf-status"] == "fulfilled"


async def test_exec_says_pending_evaluation(platform: Platform) -> None:
    version = await platform.deployed_version()
    body = json.dumps({"requestHeader": {"pollDurationSeconds": 1}, "requestBody": [1]}).encode()
    answer = await call(platform, "POST", version.exec, body)
    request_id = answer.headers["nvcf-reqid"]
    assert (answer.status, answer.json) == (202, {"reqId": request_id, "status": "pending-evaluation"})
    async with peer_worker(platform, version) as worker:
        work = await worker.pull()
        await work.answer(b"[2]", "200 OK", "Content-Type: application/json")
        done = await call(platform, "GET", EXEC + request_id)
        assert done.json["response"] == [2]


async def test_a_parked_result_waits_for_its_poll_at_any_replica(platform: Platform) -> None:
    version = await platform.deployed_version()
    other = await platform.start_gateway()
    request_id = await kept(platform, version)
    large = bytes(range(256)) * 8192
    async with peer_worker(platform, version) as worker:
        work = await worker.pull()
        assert (await work.answer(large, "201 Created"))[0] == 200
        answer = await call(platform, "GET", PEXEC + request_id, gateway=other)
        assert (answer.status, answer.body) == (201, large)
    assert (await call(platform, "GET", PEXEC + request_id, gateway=other)).status in (201, 404)


async def test_an_inline_result_is_stored_before_it_is_acknowledged(platform: Platform) -> None:
    version = await platform.deployed_version()
    request_id = await kept(platform, version)
    async with peer_worker(platform, version) as worker:
        work = await worker.pull()
        reply = nvcf_pb2.InlineResponse(body=b"inline", httpStatusCode=200, endOfResponse=True)
        assert "Nvcf-Reply-Status" not in ((await work.inline(reply)).headers or {})
        await work.ack()
        assert (await call(platform, "GET", PEXEC + request_id)).body == b"inline"
        assert ((await work.inline(reply)).headers or {})["Nvcf-Reply-Status"] == "410"


async def test_a_large_body_is_kept_as_well(platform: Platform) -> None:
    version = await platform.deployed_version()
    data = b"0123456789" * 40_000
    request_id = await kept(platform, version, data)
    async with peer_worker(platform, version) as worker:
        work = await worker.pull()
        status, _, rest = await work.get()
        assert (status, work.request.requestBody + rest) == (200, data)
        await work.answer(b"read it all")
        assert (await call(platform, "GET", PEXEC + request_id)).body == b"read it all"


async def test_progress_of_a_kept_request_is_no_result(platform: Platform) -> None:
    version = await platform.deployed_version()
    request_id = await kept(platform, version)
    async with peer_worker(platform, version) as worker:
        work = await worker.pull()
        assert (await work.post(b"HTTP/1.1 202 Accepted\r\n\r\n"))[0] == 200
        busy = await call(platform, "GET", PEXEC + request_id, NVCF_POLL_SECONDS="1")
        assert (busy.status, busy.headers["nvcf-status"]) == (202, "in-progress")
        assert (await work.answer(b"final"))[0] == 200
        assert (await call(platform, "GET", PEXEC + request_id)).body == b"final"


async def test_a_broken_delivery_of_a_kept_request_can_be_repeated(platform: Platform) -> None:
    version = await platform.deployed_version()
    request_id = await kept(platform, version)
    began = asyncio.Event()

    async def broken() -> Any:
        yield b"HTTP/1.1 200 OK\r\n\r\nhalf"
        began.set()
        await asyncio.Event().wait()

    async with peer_worker(platform, version) as worker:
        work = await worker.pull()
        posting = asyncio.create_task(work.post(broken()))
        await began.wait()
        posting.cancel()
        await asyncio.wait({posting})
        async with asyncio.timeout(10):
            while (await work.post(b"HTTP/1.1 200 OK\r\n\r\nwhole"))[0] != 200:
                await asyncio.sleep(0.02)
        await work.ack()
        assert (await call(platform, "GET", PEXEC + request_id)).body == b"whole"


@pytest.mark.parametrize(("header", "status"), [("false", 504), ("true", 202), ("maybe", 400)])
async def test_the_header_decides_over_the_deployment(platform: Platform, header: str, status: int) -> None:
    version = await platform.deployed_version(keep_queued=header == "false")
    answer = await call(platform, "POST", version.pexec, b"", NVCF_POLL_SECONDS="1", NVCF_KEEP_QUEUED=header)
    assert answer.status == status


async def test_pass_through_is_never_kept(platform: Platform) -> None:
    version = await platform.deployed_version()
    answer = await call(platform, "POST", "/x", b"", NVCF_POLL_SECONDS="1", function_id=version.function_id)
    assert (answer.status, answer.body) == (504, b"")
    await platform.queue_is_empty(version)


async def test_delete_cancels(platform: Platform) -> None:
    version = await platform.deployed_version()
    request_id = await kept(platform, version)
    async with peer_worker(platform, version) as worker:
        cancels = await worker.client.subscribe(f"nvcf.cancel.{version.id}")
        await worker.client.flush()
        work = await worker.pull()
        assert (await call(platform, "DELETE", PEXEC + request_id)).status == 204
        assert (await cancels.next_msg(timeout=5)).data.decode() == request_id
        assert (await work.post(b"HTTP/1.1 200 OK\r\n\r\n"))[0] == 401
    assert (await call(platform, "GET", PEXEC + request_id)).status == 404
    await platform.queue_is_empty(version)


async def test_two_polls_wait_for_one_result(platform: Platform) -> None:
    version = await platform.deployed_version()
    request_id = await kept(platform, version)
    polls = [asyncio.create_task(call(platform, "GET", PEXEC + request_id)) for _ in range(2)]
    async with peer_worker(platform, version) as worker:
        work = await worker.pull()
        await work.answer(b"for both")
        assert [answer.body for answer in await asyncio.gather(*polls)] == [b"for both", b"for both"]


async def test_tracking_stream_is_there_from_the_start(platform: Platform) -> None:
    client = await platform.broker_client()
    try:
        answer = await client.request("$JS.API.STREAM.INFO.requestToFunctionVersion_local", b"", timeout=5)
        config = json.loads(answer.data)["config"]
        assert config["subjects"] == ["requestToFunctionVersion.local.>"]
        assert (config["retention"], config["discard"]) == ("limits", "new")
        assert config["max_age"] == 3_600_000_000_000
        assert (config["max_msgs_per_subject"], config["max_msgs"]) == (1, 100_000)
        assert config["allow_direct"] is True
    finally:
        await client.close()


async def test_a_full_store_refuses_and_drops_nothing(platform: Platform) -> None:
    version = await platform.deployed_version()
    client = await platform.broker_client()
    stream, ids = "OBJ_nvcf_results_local", []

    async def limit(size: int) -> None:
        info = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=5)
        found = json.loads(info.data)
        config = {**found["config"], "max_bytes": size + (found["state"]["bytes"] if size > 0 else 0)}
        await client.request(f"$JS.API.STREAM.UPDATE.{stream}", json.dumps(config).encode(), timeout=5)

    try:
        await limit(1_000_000)
        async with peer_worker(platform, version) as worker:
            for number in range(3):
                answer = await call(platform, "POST", version.pexec, b"", NVCF_POLL_SECONDS="1")
                ids.append(answer.headers["nvcf-reqid"])
                work = await worker.pull()
                status, _ = await work.post(b"HTTP/1.1 200 OK\r\n\r\n" + bytes([number]) * 450_000)
                assert status == (200 if number < 2 else 503)
                await work.ack()
        for number in (0, 1):
            answer = await call(platform, "GET", PEXEC + ids[number])
            assert (answer.status, answer.body) == (200, bytes([number]) * 450_000)
    finally:
        await limit(-1)
        await client.close()
