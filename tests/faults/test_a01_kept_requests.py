"""A1: a request that somebody may come back for is acknowledged only when a gateway says that nobody can.

A token that a restarted gateway does not know, and lookups that nobody answers, are no such word.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nvcf_broker.process import free_port
from nvcf_worker import Request, SyncRequest
from nvcf_worker.exchange import fetch, response_delivery, transport, waiters
from nvcf_worker.function.response import Reply
from nvcf_worker.process.durations import Backoff
from tests.support.peers.gateway import PeerGateway
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.platform.nats_server import NatsServer
from tests.support.platform.workers import LocalWorker, local_worker, worker_config
from tests.support.waiting import eventually

EXECUTIONS = Path(__file__).parents[1] / "functions" / "executions.py"
KEPT = 500

Handler = Callable[[Any], Any]
Serve = Callable[[Handler], Coroutine[Any, Any, LocalWorker]]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def gateway(broker: NatsServer) -> AsyncIterator[PeerGateway]:
    """A gateway that answers no lookups until a test says otherwise."""
    peer = PeerGateway(broker.url)
    await peer.start()
    yield peer
    await peer.stop()


@pytest.fixture
async def serve(
    gateway: PeerGateway, broker: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Serve]:
    """Start a worker that tries again soon."""
    for module in (response_delivery, fetch):
        monkeypatch.setattr(module, "RETRY", Backoff(first=0.05, limit=0.2))
    monkeypatch.setattr(transport, "REPLY_TIMEOUT", 0.3)
    workers: list[LocalWorker] = []

    async def start(handler: Handler) -> LocalWorker:
        workers.append(local_worker(handler, worker_config(gateway, broker, tmp_path)))
        await workers[-1].ready()
        return workers[-1]

    yield start
    for each in workers:
        await each.stop()


def echo(request: SyncRequest) -> bytes:
    return request.read()


async def stream(request: Request) -> AsyncIterator[bytes]:
    yield await request.read()


async def _empty(gateway: PeerGateway) -> bool:
    return await gateway.queued() == 0


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("inline", ["answer", "gone"])
@pytest.mark.parametrize("handler", [echo, stream])
async def test_an_unknown_token_and_silence_are_no_consent(
    gateway: PeerGateway, serve: Serve, handler: Handler, inline: str, kept: bool
) -> None:
    await serve(handler)
    gateway.inline = inline
    await gateway.invoke(
        b"precious", kept=kept, forget=True, reply_max_bytes=4 if inline == "answer" else 999
    )
    await eventually(lambda: gateway.lookups >= 2, "nobody answers, so the worker asks again")
    assert await gateway.queued() == 1
    gateway.rescue, gateway.inline = "door", "answer"
    await eventually(lambda: bool(gateway.rescued), "a gateway takes the response")
    assert (await gateway.rescued[-1].answer()).body == b"precious"
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_a_body_is_not_given_up_by_an_unknown_token_and_silence(
    gateway: PeerGateway, serve: Serve
) -> None:
    async def rest() -> AsyncIterator[bytes]:
        yield b" and the rest"

    await serve(echo)
    call = await gateway.invoke(b"beginning", rest=rest(), kept=True, forget=True)
    gateway.lost.append(call)
    await eventually(lambda: gateway.lookups >= 2, "nobody answers, so the worker asks again")
    gateway.rescue = "door"
    await eventually(lambda: bool(gateway.rescued), "a gateway has the body")
    assert (await gateway.rescued[-1].answer()).body == b"beginning and the rest"


async def test_what_nobody_takes_in_time_goes_back_to_the_queue(
    gateway: PeerGateway, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiters, "RETENTION_SECONDS", 0.2)
    monkeypatch.setattr("nvcf_worker.runner.UNREACHABLE_SECONDS", 0.05)
    attempts: list[int] = []

    async def handler(request: Request) -> bytes:
        attempts.append(request.attempt)
        return b"again"

    await serve(handler)
    await gateway.invoke(kept=True, forget=True, reply_max_bytes=4)
    await eventually(lambda: 2 in attempts, "delivered again at once, not after the ack wait")
    assert await gateway.queued() == 1


async def test_an_abandoned_request_is_a_warning_with_its_reason_and_counted(
    gateway: PeerGateway, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.rescue = "gone"
    taker = await serve(echo)
    await gateway.invoke(b"x", kept=True, forget=True, reply_max_bytes=0)
    await eventually(lambda: _empty(gateway), "acknowledged")
    told = [record for record in caplog.records if "request abandoned" in record.message]
    assert [(record.levelname, "in no queue any more" in record.message) for record in told] == [
        ("WARNING", True)
    ]
    assert taker.worker._telemetry.dropped == {"not-wanted": 1}


async def test_a_response_that_cannot_be_sent_becomes_a_500_at_once(
    gateway: PeerGateway, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(reply: Reply) -> bytes:
        if reply.status == 200:
            raise RuntimeError("no such encoding")
        return encode(reply)

    encode = transport.inline_response
    monkeypatch.setattr(transport, "inline_response", fail)
    await serve(echo)
    answer = await (await gateway.invoke(b"x")).answer()
    assert answer.status == 500
    assert answer.json()["title"] == "Internal Server Error"
    await eventually(lambda: _empty(gateway), "acknowledged")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("keyed", [False, True])
async def test_none_of_many_kept_requests_is_lost_when_gateway_and_broker_are_killed(
    tmp_path: Path, keyed: bool
) -> None:
    http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
    flags = ("--http", http, "--grpc", grpc, "--ack-wait", "6")
    async with running_platform(tmp_path, flags=flags) as platform:
        version = await platform.deployed_version()
        notes = tmp_path / "notes"
        notes.touch()
        ids = await _keep(platform, version, KEPT, keyed=keyed)
        instance = await platform.start_worker(
            version, EXECUTIONS, "once", concurrency=250, environment={"NOTES": str(notes)}
        )
        await eventually(lambda: len(notes.read_bytes().splitlines()) >= 250, "the instance is at work")
        instance.kill(signal.SIGSTOP)
        platform.gateway.child.kill()
        await platform.broker.kill()
        await platform.broker.start()
        instance.kill(signal.SIGCONT)
        await platform.start_gateway(*flags)
        found = await asyncio.gather(*(_polled(platform, request_id) for request_id in ids))
        assert sorted(found) == sorted(range(KEPT)), instance.text()[-3000:]


async def _keep(platform: Platform, version: Version, count: int, *, keyed: bool) -> list[str]:
    """Queue calls that are answered 202. Returns their request ids."""
    gate = asyncio.Semaphore(500)

    async def one(number: int) -> str:
        headers = {**platform.authorization(), "NVCF-POLL-SECONDS": "1"}
        if keyed:
            headers["Idempotency-Key"] = str(number)
        body = json.dumps({"id": number, "seconds": 1})
        async with (
            gate,
            platform.session.post(
                platform.gateway.url + version.pexec, data=body, headers=headers
            ) as response,
        ):
            assert response.status == 202, await response.text()
            return response.headers["nvcf-reqid"]

    return await asyncio.gather(*(one(number) for number in range(count)))


async def _polled(platform: Platform, request_id: str) -> int | str:
    """Poll until there is a response. Returns the number in it, or what came instead."""
    url = f"{platform.gateways[-1].url}/v2/nvcf/pexec/status/{request_id}"
    headers = {**platform.authorization(), "NVCF-POLL-SECONDS": "5"}
    while True:
        try:
            async with platform.session.get(url, headers=headers) as response:
                text = await response.text()
        except aiohttp.ClientError:
            continue
        if response.status == 200:
            return int(json.loads(text)["id"])
        if response.status not in (202, 503):
            return f"{response.status} {text}"
