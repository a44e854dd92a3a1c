"""202, polls and other ways back: compatibility mode against a peer's gateway.

See protocol.md, sections 2 and 4.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nvcf_worker import Request, SyncRequest
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.calls import Answer, Call
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually


class Stage:
    """Lets a test say what a handler does next."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[Any] = asyncio.Queue()
        self.started = asyncio.Event()

    async def __call__(self, request: Request) -> Any:
        self.started.set()
        while True:
            step = await self.steps.get()
            if not isinstance(step, tuple):
                return step
            request.progress(*step)


async def _empty(gateway: PeerGateway) -> bool:
    return await gateway.queued() == 0


def _progress(answer: Answer) -> tuple[int, str, bytes]:
    return answer.status, answer.headers["nvcf-percent-complete"], answer.body


async def _told(gateway: PeerGateway, stage: Stage, **options: Any) -> Call:
    """A call that has been answered 202 because its time was over."""
    headers = {"NVCF-POLL-SECONDS": "1"}
    call = await gateway.invoke(headers=headers, **options)
    assert _progress(await call.answer()) == (202, "0", b"")
    return call


@pytest.mark.parametrize("plain", [False, True])
async def test_the_end_of_the_poll_time_then_the_answer_by_a_poll(
    gateway: PeerGateway, start_worker: StartWorker, plain: bool
) -> None:
    stage = Stage()
    await start_worker(stage).ready()
    call = await _told(gateway, stage, reply_max_bytes=None if plain else 262_144)
    poll = await gateway.poll(call, plain=plain)
    await stage.steps.put({"done": True})
    answer = await poll.answer()
    assert (answer.status, answer.json()) == (200, {"done": True})
    assert poll.via == ["attach" if plain else "inline"]
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_progress_answers_the_call_and_each_poll(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    stage = Stage()
    await start_worker(stage).ready()
    call = await gateway.invoke()
    await stage.steps.put((12.5, {"part": 1}))
    assert _progress(await call.answer()) == (202, "12", b'{"part":1}')
    polls = [await gateway.poll(call), await gateway.poll(call)]
    await stage.steps.put((150.0,))
    for poll in polls:
        assert _progress(await poll.answer()) == (202, "100", b"")
    await stage.steps.put((70,))
    # Nobody waited for that one: the next poll gets it at once.
    await eventually(lambda: stage.steps.empty(), "progress reported")
    assert _progress(await (await gateway.poll(call)).answer()) == (202, "70", b"")
    last = [await gateway.poll(call), await gateway.poll(call, seconds=1)]
    assert _progress(await last[1].answer()) == (202, "70", b"")
    await stage.steps.put("end")
    assert (await last[0].answer()).body == b"end"
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_all_polls_that_wait_get_the_answer(gateway: PeerGateway, start_worker: StartWorker) -> None:
    stage = Stage()
    await start_worker(stage).ready()
    call = await _told(gateway, stage)
    polls = [await gateway.poll(call) for _ in range(3)]
    await stage.steps.put("for all")
    assert [(await poll.answer()).body for poll in polls] == [b"for all"] * 3


async def test_a_finished_answer_waits_for_its_poll_without_a_slot(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    stage = Stage()
    worker = start_worker(stage, concurrency=1)
    await worker.ready()
    call = await _told(gateway, stage)
    await stage.steps.put("later")
    await eventually(lambda: worker.worker.free_slots == 1, "the slot is free")
    other = await gateway.invoke()
    await stage.steps.put("other")
    assert (await other.answer()).body == b"other"

    async def one_left() -> bool:
        return await gateway.queued() == 1

    await eventually(one_left, "only the finished one is in the queue")
    assert (await (await gateway.poll(call)).answer()).body == b"later"
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_a_gateway_that_keeps_answers_gets_it_when_nobody_polls(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    gateway.rescue = "door"
    stage = Stage()
    await start_worker(stage).ready()
    await _told(gateway, stage)
    await stage.steps.put("kept")
    await eventually(lambda: bool(gateway.rescued), "a fallback gateway was looked for")
    assert (await gateway.rescued[0].answer()).body == b"kept"
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_a_stream_goes_to_a_poll_as_it_is_made(gateway: PeerGateway, start_worker: StartWorker) -> None:
    stage = Stage()

    async def handler(request: Request) -> AsyncIterator[bytes]:
        await stage(request)
        for number in range(100):
            yield b"%d," % number

    await start_worker(handler).ready()
    call = await _told(gateway, stage)
    polls = [await gateway.poll(call), await gateway.poll(call)]
    await stage.steps.put("go")
    assert (await polls[0].answer()).body == b"".join(b"%d," % number for number in range(100))
    assert (await polls[1].answer()).status == 202
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_others_hear_how_far_a_stream_is_that_one_of_them_gets(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    """A stream can be sent once: the others are told of progress, and at the end of their poll time."""
    stage, steps = Stage(), asyncio.Event()

    async def handler(request: Request) -> AsyncIterator[bytes]:
        await stage(request)
        yield b"first,"
        await stage(request)
        yield b"last"
        steps.set()

    await start_worker(handler).ready()
    call = await _told(gateway, stage)
    polls = [await gateway.poll(call), await gateway.poll(call), await gateway.poll(call, seconds=1)]
    await stage.steps.put("go")
    assert (await polls[0].head)[0] == 200
    assert _progress(await polls[2].answer()) == (202, "0", b"")
    assert not polls[1].head.done()
    await stage.steps.put((60, {"so": "far"}))
    assert _progress(await polls[1].answer()) == (202, "60", b'{"so":"far"}')
    await stage.steps.put("end")
    assert (await polls[0].answer()).body == b"first,last"
    await eventually(lambda: _empty(gateway), "acknowledged")


async def test_a_request_that_comes_late_is_never_told_to_wait(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    """Its gateway has done so, and takes the answer by the first door."""
    stage = Stage()
    await start_worker(stage).ready()
    call = await gateway.invoke(headers={"NVCF-POLL-SECONDS": "1"}, age=30)
    await stage.started.wait()
    await stage.steps.put((50,))
    poll = await gateway.poll(call)
    assert _progress(await poll.answer()) == (202, "50", b"")
    await stage.steps.put("late")
    assert (await call.answer()).body == b"late"


@pytest.mark.parametrize(
    "headers",
    [
        {"nvcf-feature-disable-worker-compatibility": "true", "NVCF-POLL-SECONDS": "1"},
        {"Accept": "text/event-stream", "NVCF-POLL-SECONDS": "1"},
    ],
)
async def test_pass_through_and_event_streams_are_left_alone(
    gateway: PeerGateway, start_worker: StartWorker, headers: dict[str, str]
) -> None:
    stage = Stage()
    worker = start_worker(stage)
    await worker.ready()
    call = await gateway.invoke(headers=headers)
    await stage.steps.put((10,))
    await eventually(lambda: stage.steps.empty(), "progress reported")
    await asyncio.sleep(1.5)  # well beyond the poll time: nothing may come of it
    assert not call.head.done()
    await stage.steps.put("only")
    assert (await call.answer()).body == b"only"


async def test_compatibility_can_be_switched_off(gateway: PeerGateway, start_worker: StartWorker) -> None:
    stage = Stage()
    await start_worker(stage, compatibility_disabled=True).ready()
    call = await gateway.invoke()
    await stage.steps.put((10,))
    await stage.steps.put("only")
    assert (await call.answer()).body == b"only"


async def test_nobody_polls_for_a_foreign_request(gateway: PeerGateway, start_worker: StartWorker) -> None:
    await start_worker(Stage()).ready()
    foreign = gateway._new_call("3b241101-e2bb-4255-8caf-4136c566a962", None, fetch=False)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await gateway.poll(foreign)


async def test_progress_from_a_thread_and_from_a_file(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    def handler(request: SyncRequest) -> str:
        request.progress(20, ["thread"])
        content = {"id": request.id, "progress": 60, "partialResponse": {"from": "file"}}
        new = request.output_dir / "progress.new"
        new.write_text(json.dumps(content))
        request.cancelled.wait(1.2)
        new.replace(request.output_dir / "progress")
        request.cancelled.wait(5.0)
        return "done"

    await start_worker(handler).ready()
    call = await gateway.invoke()
    assert _progress(await call.answer()) == (202, "20", b'["thread"]')
    assert _progress(await (await gateway.poll(call)).answer()) == (202, "60", b'{"from":"file"}')
    assert (await (await gateway.poll(call)).answer()).body == b"done"


async def test_a_partial_result_that_json_cannot_say_is_left_out(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    stage = Stage()
    await start_worker(stage).ready()
    call = await gateway.invoke()
    await stage.steps.put((5, object()))
    assert _progress(await call.answer()) == (202, "5", b"")
    await stage.steps.put("done")


ERRORS: list[tuple[Any, str, Any]] = [
    ({"error": "no such voice"}, "application/json", "no such voice"),
    ({"error": {"code": 7}}, "application/json", '{"code": 7}'),
    ("plain words", "text/plain", "plain words"),
    (b"\x00\x01", "application/octet-stream", None),
]


@pytest.mark.parametrize(("body", "media_type", "detail"), ERRORS)
async def test_errors_become_problem_documents(
    gateway: PeerGateway, start_worker: StartWorker, body: Any, media_type: str, detail: Any
) -> None:
    from nvcf_worker import Response

    await start_worker(lambda request: Response(body, 409, {"x-own": "kept"}, media_type)).ready()
    answer = await (await gateway.invoke()).answer()
    assert (answer.status, answer.headers["content-type"]) == (409, "application/problem+json")
    assert answer.headers["x-own"] == "kept"
    problem = answer.json()
    assert problem["type"] == "urn:inference-service:problem-details:conflict"
    assert problem.get("detail") == detail


async def test_a_worker_that_takes_over_from_one_that_told_the_caller_waits_for_the_poll(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    """With a gateway that keeps nothing: the first door is used up, and somebody will ask."""
    first = Stage()
    worker = start_worker(first, instance="first", grace_seconds=0.0)
    await worker.ready()
    call = await _told(gateway, first)
    await worker.stop()
    second = Stage()
    taker = start_worker(second, instance="second")
    await taker.ready()
    await second.started.wait()
    await second.steps.put("taken over")
    await eventually(lambda: taker.worker.free_slots == 4, "finished and waiting")
    assert (await (await gateway.poll(call)).answer()).body == b"taken over"
    await eventually(lambda: _empty(gateway), "acknowledged")
