"""What comes from the queue: malformed messages, missing consumers, several regions, many requests."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest

from nvcf_proto.pb import nvcf_pb2
from nvcf_worker import Request, SyncRequest
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually


def echo(request: SyncRequest) -> bytes:
    return request.read()


async def _empty(gateway: PeerGateway) -> bool:
    return await gateway.queued() == 0


async def test_malformed_messages_are_dropped_and_logged_once(
    gateway: PeerGateway, start_worker: StartWorker, caplog: pytest.LogCaptureFixture
) -> None:
    worker = start_worker(echo, concurrency=2)
    await worker.ready()
    no_target = nvcf_pb2.WorkerInvokeFunctionRequest(requestId=str(uuid.uuid4()))
    no_target.statelessConfig.connectionConfigs.add()
    stateful = nvcf_pb2.WorkerInvokeFunctionRequest(requestId=str(uuid.uuid4()))
    stateful.statefulConfig.nvcfRegionOfInvoker = "local"
    bad_url = nvcf_pb2.WorkerInvokeFunctionRequest(requestId=str(uuid.uuid4()))
    bad_url.statelessConfig.connectionConfigs.add().http1Config.targetURI = "file:///etc"
    messages = [
        b"\xff\xff\xff no protobuf",
        b"",
        nvcf_pb2.WorkerInvokeFunctionRequest(requestId="../x").SerializeToString(),
        nvcf_pb2.WorkerInvokeFunctionRequest(requestId=str(uuid.uuid4())).SerializeToString(),
        no_target.SerializeToString(),
        stateful.SerializeToString(),
        bad_url.SerializeToString(),
    ]
    for message in messages:
        await gateway.publish_raw(message)
    await eventually(lambda: _empty(gateway), "all dropped")
    assert caplog.text.count("dropped a malformed message") == len(messages)
    assert (await (await gateway.invoke(b"still here")).answer()).body == b"still here"
    assert not worker.task.done()


async def test_the_consumer_is_provisioned_when_it_is_missing(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    await start_worker(echo).ready()
    assert gateway.provisions == ["local"]
    await gateway.delete_consumer()
    await eventually(lambda: len(gateway.provisions) == 2, "provisioned again")
    assert (await (await gateway.invoke(b"a")).answer()).body == b"a"


async def test_a_consumer_that_exists_is_not_provisioned(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    await gateway.provision()
    await start_worker(echo).ready()
    assert (await (await gateway.invoke(b"a")).answer()).body == b"a"
    assert gateway.provisions == []


async def test_no_more_requests_than_slots_are_in_work(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    await gateway.provision()
    running, most = 0, 0

    async def handler(request: Request) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return await request.read()

    await start_worker(handler, concurrency=8).ready()
    calls = [await gateway.invoke(b"%d" % number) for number in range(200)]
    answers = await asyncio.gather(*(call.answer() for call in calls))
    assert [int(answer.body) for answer in answers] == list(range(200))
    assert most == 8
    await eventually(lambda: _empty(gateway), "queue empty")
    info = await gateway.consumer()
    assert info["num_redelivered"] == 0


async def test_two_workers_share_the_queue(gateway: PeerGateway, start_worker: StartWorker) -> None:
    def handler_of(name: str):  # type: ignore[no-untyped-def]
        async def handler(request: Request) -> str:
            await asyncio.sleep(0.01)
            return name

        return handler

    for name in ("one", "two"):
        await start_worker(handler_of(name), instance=name, concurrency=2).ready()
    calls = [await gateway.invoke() for _ in range(60)]
    answers = [answer.body for answer in await asyncio.gather(*(call.answer() for call in calls))]
    assert answers.count(b"one") + answers.count(b"two") == 60
    assert answers.count(b"one") > 5
    assert answers.count(b"two") > 5


async def test_all_regions_are_served_without_redelivery(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    gateway.regions = ["local", "other"]
    worker = start_worker(echo, concurrency=1)
    await worker.ready()
    await eventually(lambda: sorted(gateway.provisions) == ["local", "other"], "both provisioned")
    for number in range(20):
        region = gateway.regions[number % 2]
        call = await gateway.invoke(b"%d" % number, region=region)
        assert (await call.answer()).body == b"%d" % number


async def test_a_request_that_is_delivered_twice_runs_once(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    """Its ack wait passes while the worker cannot signal; the second delivery is recognised."""
    runs = 0
    go_on = asyncio.Event()

    async def handler(request: Request) -> str:
        nonlocal runs
        runs += 1
        await go_on.wait()
        return "once"

    worker = start_worker(handler, concurrency=2)
    await worker.ready()
    call = await gateway.invoke()
    await eventually(lambda: runs == 1, "running")
    # Handing it back behind the worker's back has the same effect as a passed ack wait.
    delivery = next(iter(worker.worker._inflight))
    await gateway.connection.publish(delivery.work.ack_subject, b"-NAK")
    first = delivery.work.ack_subject
    await eventually(lambda: delivery.work.ack_subject != first, "delivered again")
    go_on.set()
    assert (await call.answer()).body == b"once"
    assert runs == 1
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_the_attempt_is_counted(gateway: PeerGateway, start_worker: StartWorker) -> None:
    async def forever(request: Request) -> None:
        await asyncio.sleep(60)

    first = start_worker(forever, instance="first", grace_seconds=0.1)
    await first.ready()
    call = await gateway.invoke()
    await eventually(lambda: first.worker.in_flight == 1, "taken")
    await first.stop()
    await start_worker(lambda request: [request.attempt], instance="second").ready()
    assert (await call.answer()).json() == [2]


async def test_trace_context_reaches_the_handler_and_the_log(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    from nvcf_worker.process import logs

    def plain(request: SyncRequest) -> str:
        return json.dumps([logs.current_trace_id(), logs.request_id.get()])

    async def coroutine(request: Request) -> str:
        return json.dumps([logs.current_trace_id(), logs.request_id.get()])

    trace_id = "0af7651916cd43dd8448eb211c80319c"
    for handler in (plain, coroutine):
        worker = start_worker(handler, instance=handler.__name__)
        await worker.ready()
        call = await gateway.invoke(trace=f"00-{trace_id}-b7ad6b7169203331-01")
        assert (await call.answer()).json() == [trace_id, call.request_id]
        call = await gateway.invoke()
        assert (await call.answer()).json() == [None, call.request_id]
        await worker.stop()
