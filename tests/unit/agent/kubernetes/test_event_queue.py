"""The events of a backend: all in order, or an error for the reader."""

import pytest

from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes import event_queue
from nvcf_agent.kubernetes.event_queue import EventQueue
from nvcf_agent.state.events import Ready


async def test_a_full_queue_is_an_error_for_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_queue, "_MOST", 3)
    events = EventQueue()
    for number in range(3):
        events.put(Ready(str(number)))
    read = events.read()
    assert (await anext(read)).instance_id == "0"
    for number in range(3, 5):
        events.put(Ready(str(number)))
    assert [(await anext(read)).instance_id for _ in range(2)] == ["2", "3"]
    with pytest.raises(AgentError, match="3 wait"):
        await anext(read)


async def test_the_error_of_a_task_reaches_the_reader() -> None:
    async def fail() -> None:
        raise KeyError("a mistake")

    events = EventQueue()
    events.put(Ready("first"))
    events.start(fail(), "failing")
    read = events.read()
    assert (await anext(read)).instance_id == "first"
    with pytest.raises(KeyError, match="a mistake"):
        await anext(read)
    await events.close()
