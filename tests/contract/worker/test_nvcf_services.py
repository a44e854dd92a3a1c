"""Our worker behind NVIDIA's broker, WorkerService and invocation service (docs/internals/interop.md)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from nvcf_proto import subjects
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker import Request, Response
from nvcf_worker.exchange import fetch, waiters
from tests.contract.worker.services import StartServed, settled
from tests.support.peers.nvcf_broker import CalloutBroker
from tests.support.peers.nvcf_services import PeerServices
from tests.support.platform.workers import local_worker, worker_config
from tests.support.waiting import eventually


async def echo(request: Request) -> Any:
    """The body; `request.path` in a header."""
    return Response(await request.read(), headers={"x-path": request.path})


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_the_permissions_of_their_callout_are_enough(
    services: PeerServices, serve: StartServed, callout_broker: CalloutBroker
) -> None:
    """With them alone requests, polls, cancels and other regions work; what is ours is denied.

    See protocol.md, section 8.
    """
    before = callout_broker.violations()
    services.regions = ["local", "far"]
    go_on = asyncio.Event()

    async def handler(request: Request) -> bytes:
        if request.path == "/wait":
            await go_on.wait()
        return await request.read()

    await serve(handler).ready()
    await eventually(lambda: {"local", "far"} <= set(services.provisions), "provisioned")
    assert (await (await services.call(b"a")).answer()).body == b"a"
    waiting = await services.call(path="/wait", headers={"NVCF-POLL-SECONDS": "1"})
    assert (await waiting.answer()).status == 202
    poll = await services.ask(waiting)
    go_on.set()
    assert (await poll.answer()).status == 200
    await eventually(lambda: settled(services), "acknowledged")
    assert len(services.callout.presented) == 1
    assert callout_broker.violations() - before <= {
        subjects.version_polling_subject(services.version_id, "*"),
        subjects.fallback_subject(services.version_id),
    }


async def test_the_newest_token_is_shown_to_the_callout(services: PeerServices, serve: StartServed) -> None:
    services.token_life = 2.0
    await serve(echo).ready()
    await eventually(lambda: len(services.connects) >= 2, "renewed")
    assert services.callout.presented[0] != services.token, "ConnectOnce comes first"


async def test_a_seed_takes_the_place_of_the_token(
    services: PeerServices, serve: StartServed, callout_broker: CalloutBroker
) -> None:
    await serve(echo, nkey_seed=callout_broker.worker_seed).ready()
    assert (await (await services.call(b"a")).answer()).body == b"a"
    assert not services.callout.presented


async def test_a_broker_that_forgets_its_streams(tmp_path: Path) -> None:
    """Theirs keeps requests in memory: after it has come back, all is provisioned anew."""
    broker = CalloutBroker(tmp_path / "nats")
    broker.start()
    peer = PeerServices(broker)
    await peer.start()
    config = worker_config(peer, broker, tmp_path, nats_servers=(broker.address,))
    worker = local_worker(echo, config)
    try:
        await worker.ready()
        provisioned = len(peer.provisions)
        broker.kill()
        await eventually(lambda: not worker.worker.ready, "connection loss noticed")
        broker.start()
        await eventually(lambda: len(peer.provisions) > provisioned, "provisioned anew")
        await eventually(lambda: worker.worker.ready, "pulling again")
        assert (await (await peer.call(b"a")).answer()).body == b"a"
    finally:
        await worker.stop()
        await peer.stop()
        broker.kill()


async def test_a_request_that_was_handed_back_often_is_served(
    services: PeerServices, serve: StartServed
) -> None:
    """Their consumer sets no limit, and their busy workers hand back at once: the number says nothing."""
    await services.provision()
    call = await services.call(b"a")
    stream, inbox = f"rq_local_{services.version_id}", services.connection.new_inbox()
    pulled = await services.connection.subscribe(inbox)
    for _ in range(12):
        await services.connection.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers", b"1", reply=inbox
        )
        message = await pulled.next_msg(timeout=10)
        await services.connection.publish(message.reply, b"-NAK")
    attempts: list[int] = []

    async def handler(request: Request) -> bytes:
        attempts.append(request.attempt)
        return await request.read()

    await serve(handler).ready()
    assert (await call.answer()).status == 200
    assert attempts == [13]


def _without_expiration(answer: nvcf_pb2.WorkerConnectOnceResponse) -> None:
    answer.ClearField("expiration")


def _without_token(answer: nvcf_pb2.WorkerConnectOnceResponse) -> None:
    answer.nvcfWorkerToken = ""
    answer.ClearField("expiration")


def _with_odd_regions(answer: nvcf_pb2.WorkerConnectOnceResponse) -> None:
    answer.otherRegions[:] = ["", "local", "far", "far"]


@pytest.mark.parametrize("change", [_without_expiration, _without_token, _with_odd_regions])
async def test_answers_to_connect_once_with_less_in_them(
    services: PeerServices, serve: StartServed, change: Any
) -> None:
    services.connect_answer = change
    worker = serve(echo)
    await worker.ready()
    assert (await (await services.call(b"a")).answer()).body == b"a"
    odd = change is _with_odd_regions
    assert worker.worker._registration.connected.regions == (("local", "far") if odd else ("local",))
    assert "" not in services.provisions


async def test_a_version_that_is_not_active_yet_is_waited_for(
    services: PeerServices, serve: StartServed
) -> None:
    """Theirs answers PERMISSION_DENIED until the version's deployment has begun: for 5 min.

    See protocol.md, section 5.2.
    """
    services.refusal = grpc.StatusCode.PERMISSION_DENIED
    worker = serve(echo)
    await eventually(lambda: services.refused >= 2, "asked again after a refusal")
    assert not worker.task.done()
    services.refusal = None
    await worker.ready()
    assert (await (await services.call(b"a")).answer()).body == b"a"


# --- request-attach


@pytest.mark.parametrize("pass_through", [True, False])
async def test_a_request_that_the_message_leaves_out(
    services: PeerServices, serve: StartServed, pass_through: bool
) -> None:
    """What the message does say is for the worker; more than 64 headers, and UTF-8 in them, may come."""

    async def handler(request: Request) -> Any:
        values = {name: request.headers[name] for name in ("x-utf8", "x-79")}
        body = (await request.read()).decode()
        seen = {"line": [request.method, request.path, request.query["a"]], **values, "body": body}
        return Response({"error": "as it is", **seen}, 418)

    await serve(handler).ready()
    head = [(f"x-{number}", str(number)) for number in range(80)]
    head += [("x-utf8", "grüße"), ("content-length", "6"), ("nvcf-poll-seconds", "30")]
    call = await services.full_call(chunks(b"abc", b"def"), head, pass_through=pass_through)
    answer = await call.answer()
    assert call.accept == ["application/octet-stream+h1"]
    assert answer.status == 418
    if not pass_through:
        assert answer.json()["detail"] == "as it is"
        return
    assert answer.json() == {
        "error": "as it is",
        "line": ["POST", "/some/path", "b"],
        "x-utf8": "grüße",
        "x-79": "79",
        "body": "abcdef",
    }


async def test_polls_are_answered_after_the_connection_was_closed_for_good(
    services: PeerServices, serve: StartServed
) -> None:
    """As a broker does whose callout refuses a reconnect: the next connection listens anew."""
    go_on = asyncio.Event()

    async def handler(request: Request) -> bytes:
        await go_on.wait()
        return b"done"

    worker = serve(handler)
    await worker.ready()
    call = await services.call(headers={"NVCF-POLL-SECONDS": "1"})
    assert (await call.answer()).status == 202
    session = worker.worker._session
    assert session is not None
    await session.connection.close()
    await eventually(lambda: worker.worker._session not in (None, session) and worker.worker.ready, "anew")
    poll = await services.ask(call)
    go_on.set()
    assert (await poll.answer()).body == b"done"


async def test_a_worker_that_leaves_while_the_broker_is_away_finishes_what_it_has(tmp_path: Path) -> None:
    """Its connection was closed for good and there is no other one yet, but the way to the caller stands."""
    broker = CalloutBroker(tmp_path / "nats")
    broker.start()
    peer = PeerServices(broker)
    await peer.start()
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> bytes:
        begun.set()
        await go_on.wait()
        return b"done"

    worker = local_worker(handler, worker_config(peer, broker, tmp_path, nats_servers=(broker.address,)))
    try:
        await worker.ready()
        call = await peer.call()
        await begun.wait()
        broker.kill()
        session = worker.worker._session
        assert session is not None
        await session.connection.close()
        await eventually(lambda: worker.worker._session is None, "no connection")
        worker.worker.stop(20.0)
        leaving = asyncio.create_task(asyncio.wait({worker.task}))
        await asyncio.sleep(0)
        go_on.set()
        assert (await call.answer()).body == b"done"
        async with asyncio.timeout(20):
            await leaving
    finally:
        await worker.stop()
        # The peer's connections could not be closed while they try in vain.
        broker.start()
        await eventually(lambda: peer.connection.is_connected, "the peer is back")
        await eventually(lambda: peer.callout._connection.is_connected, "the callout is back")
        await peer.stop()
        broker.kill()


async def test_an_empty_rest_of_a_body(services: PeerServices, serve: StartServed) -> None:
    """A chunked body that is all there already makes a token all the same: its end is not known."""
    await serve(echo).ready()
    call = await services.call(b"all of it", rest=chunks())
    assert (await call.answer()).body == b"all of it"
    assert call.accept == ["application/octet-stream"]


async def test_a_slow_caller_holds_the_acknowledgement_but_no_slot(
    services: PeerServices, serve: StartServed
) -> None:
    """Their 200 comes when the caller has read everything."""
    worker = serve(echo, concurrency=1)
    await worker.ready()
    await services.provision()
    slow = await services.call(b"x" * 1000)
    services.caller(slow).reading.clear()
    await eventually(lambda: slow.head.done(), "the head is there")
    assert (await (await services.call(b"quick")).answer()).body == b"quick"

    async def only_the_slow_one() -> bool:
        return await services.queued() == 1

    await eventually(only_the_slow_one, "the quick one is acknowledged")
    services.caller(slow).reading.set()
    assert len((await slow.answer()).body) == 1000
    await eventually(lambda: settled(services), "acknowledged")


async def test_a_caller_that_leaves_in_the_middle_of_a_stream(
    services: PeerServices, serve: StartServed
) -> None:
    """Theirs answers 200 before the upload is complete, and closes."""
    ended = asyncio.Event()

    async def handler(request: Request) -> Any:
        try:
            while True:
                yield b"piece"
                await asyncio.sleep(0.02)
        finally:
            ended.set()

    await serve(handler).ready()
    call = await services.call()
    await call.head
    services.caller(call).left.set()
    async with asyncio.timeout(20):
        await ended.wait()
    await eventually(lambda: settled(services), "acknowledged")
    assert services.caller(call).posts == [200]
    assert (await services.consumer())["num_redelivered"] == 0


@pytest.mark.parametrize("size", [10, 20_000_000])
@pytest.mark.parametrize("way", ["token gone", "forward fails"])
async def test_an_abandoned_request_is_acknowledged(
    services: PeerServices, serve: StartServed, size: int, way: str
) -> None:
    go_on = asyncio.Event()
    runs: list[str] = []

    async def handler(request: Request) -> bytes:
        runs.append(request.id)
        await go_on.wait()
        return bytes(size)

    worker = serve(handler)
    await worker.ready()
    call = await services.call(headers={"nvcf-feature-disable-worker-compatibility": "true"})
    await eventually(lambda: bool(runs), "in work")
    if way == "token gone":
        services.forget(call)
    else:
        services.caller(call).left.set()
    go_on.set()
    await eventually(lambda: settled(services), "acknowledged")
    assert runs == [call.request_id]
    assert worker.worker.in_flight == 0


@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.slow
async def test_a_service_that_is_gone_is_not_served_for_ever(
    services: PeerServices, serve: StartServed, rest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes over from a replica of theirs; without a limit of deliveries only the acknowledgement
    ends it (protocol.md, section 2.6): an abandoned request must not be tried again."""
    for module in (waiters, fetch):
        monkeypatch.setattr(module, "FALLBACK_SECONDS", 0.5)
    worker = serve(echo)
    await worker.ready()
    services.http_url = "http://127.0.0.1:1"
    await services.call(b"a", rest=chunks(b"b") if rest else None)
    await eventually(lambda: settled(services), "acknowledged", timeout=40)
    assert (await services.consumer())["num_redelivered"] == 0


# --- polls


async def test_a_call_that_waited_in_the_queue_for_all_its_time(
    services: PeerServices, serve: StartServed
) -> None:
    """Their service waits 2 s longer than the caller said, and takes a 202 until then."""
    go_on = asyncio.Event()

    async def handler(request: Request) -> bytes:
        await go_on.wait()
        return b"done"

    await serve(handler).ready()
    call = await services.call(headers={"NVCF-POLL-SECONDS": "3"}, age=3.1)
    assert (await call.answer()).status == 202
    poll = await services.ask(call)
    go_on.set()
    assert (await poll.answer()).body == b"done"


async def test_a_request_that_nobody_here_works_on_is_not_taken(
    services: PeerServices, serve: StartServed
) -> None:
    """No answer is theirs to turn into a 504."""
    import nats.errors

    await serve(echo).ready()
    call = services._new_call(str(uuid.uuid4()), None, fetch=False)
    with pytest.raises(nats.errors.NoRespondersError):
        await services.ask(call)
