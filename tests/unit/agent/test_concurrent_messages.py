"""Messages that are handled at the same time: at most so many, and what is of one request in order."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import event, given
from hypothesis import strategies as st
from nats.aio.msg import Msg

from nvcf_agent.messages import MOST_AT_ONCE, Consumer, Delivery
from nvcf_agent.requests import Requests
from nvcf_agent.state.machine_inventory import MachineInventory
from nvcf_agent.state.persisted_state import EndedInstance, PersistedState, StoredInstance
from nvcf_broker.connection import BrokerClient
from nvcf_proto.icms.messages import instance_id_of
from nvcf_proto.icms.names import CREATION_STREAM, FETCH_MESSAGES
from tests.support.waiting import eventually
from tests.unit.agent.orders import CLUSTER, order, termination


@dataclass
class SlowStore:
    """A store whose writes take some turns of the event loop, those of one request one after another."""

    turns: list[int]
    instances: dict[str, StoredInstance] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def load(self) -> tuple[list[StoredInstance], dict[str, EndedInstance]]:
        return [], {}

    async def save(self, instances: Mapping[str, StoredInstance]) -> None:
        for _ in range(self.turns.pop() if self.turns else 0):
            await asyncio.sleep(0)
        async with self.lock:
            self.instances |= instances

    async def forget(self, instance_id: str) -> None:
        self.instances.pop(instance_id)

    async def save_ended(self, ended: Mapping[str, EndedInstance]) -> None:
        await asyncio.sleep(0)


class Delivered(Delivery):
    """A delivery without a broker."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.age = None
        self.comes_again = False

    @property
    def body(self) -> bytes:
        return self._body

    async def ack(self) -> None:
        await asyncio.sleep(0)

    async def again(self, delay: float) -> None:
        self.comes_again = True


async def handle(requests: Requests, messages: list[tuple[str, str]]) -> None:
    """Handle messages at the same time, and those that have to come again after the others."""
    waiting = deque(messages)
    while waiting:
        running = []
        for kind, request_id in list(waiting)[:MOST_AT_ONCE]:
            waiting.popleft()
            if kind == "create":
                delivery = Delivered(order(request_id, expires_at=None).to_json())
                handler: Callable[[Delivery], Awaitable[None]] = requests.create
            else:
                delivery = Delivered(termination(request_id, instance_id_of(request_id)).to_json())
                handler = requests.terminate
            running.append((asyncio.ensure_future(handler(delivery)), delivery, (kind, request_id)))
        for task, delivery, message in running:
            await task
            if delivery.comes_again:
                waiting.append(message)


@given(
    st.lists(st.tuples(st.sampled_from(["create", "create", "end"]), st.sampled_from("abcd")), max_size=24),
    st.lists(st.integers(0, 9), max_size=24),
)
def test_a_request_that_was_ended_never_runs_whatever_is_handled_beside_it(
    messages: list[tuple[str, str]], turns: list[int]
) -> None:
    store = SlowStore(turns)
    requests = Requests(MachineInventory(cpu_slots=10), PersistedState(store, CLUSTER), wall=lambda: 1.0)
    asyncio.run(handle(requests, messages))
    created = {request_id for kind, request_id in messages if kind == "create"}
    ended = {request_id for kind, request_id in messages if kind == "end"}
    event(f"{len(created & ended)} requests are created and ended")
    for request_id in created:
        made = requests.of(request_id)
        assert len(made) <= 1
        assert made or instance_id_of(request_id) in requests.persisted.ended
        if request_id in ended:
            assert all(each.is_ending for each in made)
        for each in made:
            asyncio.run(requests.persisted.save([each]))
            assert store.instances[each.id].restored().is_ending is each.is_ending


async def test_messages_of_several_fetches_are_handled_at_once_up_to_a_bound() -> None:
    taken: list[Any] = []
    pulls: list[int] = []

    async def subscribe(subject: str, cb: Callable[[Any], Awaitable[None]]) -> Any:
        taken.append(cb)
        return SimpleNamespace(subject=subject, unsubscribe=nothing)

    async def publish(subject: str, body: bytes, reply: str) -> None:
        pulls.append(json.loads(body)["batch"])
        for _ in range(pulls[-1]):
            await taken[0](Msg(_client=cast("Any", None), subject="s", data=b"x"))

    async def request(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(data=b"{}")

    async def nothing() -> None: ...

    client = SimpleNamespace(
        subscribe=subscribe, publish=publish, request=request,
        on_reconnect=lambda _: lambda: None, new_inbox=lambda: "inbox",
    )  # fmt: skip
    begun: list[asyncio.Event] = []

    async def handler(_: Delivery) -> None:
        begun.append(asyncio.Event())
        await begun[-1].wait()

    is_open = asyncio.Event()
    is_open.set()
    consumer = Consumer(cast("BrokerClient", client), CREATION_STREAM, CLUSTER, handler, is_open)
    running = asyncio.create_task(consumer.run())
    await eventually(lambda: len(begun) == MOST_AT_ONCE, "as many as may be handled at once")
    assert pulls == [FETCH_MESSAGES] * (MOST_AT_ONCE // FETCH_MESSAGES)
    for each in begun[: FETCH_MESSAGES - 1]:
        each.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(begun) == MOST_AT_ONCE, "there is no room for a whole fetch"
    begun[FETCH_MESSAGES].set()
    await eventually(lambda: len(begun) == MOST_AT_ONCE + FETCH_MESSAGES, "the next fetch")
    running.cancel()
    await asyncio.wait({running})
