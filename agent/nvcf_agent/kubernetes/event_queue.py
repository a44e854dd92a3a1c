"""The events of a backend, in order, and the tasks that make them."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from nvcf_agent.errors import AgentError
from nvcf_agent.state.events import Event

# At its start, an agent finds about 10 events for each pod that is there.
_MOST = 200_000


class EventQueue:
    """Holds events until the agent takes them. Its tasks make them, and run until `close`.

    A task that fails by a mistake in the code must not leave instances unwatched without a word: the reader
    gets its error, on which the agent ends and is started anew. So it does if events are not read: they are
    read at once, unless the reader hangs, and the next agent sees anew what was left out.
    """

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Event | BaseException] = asyncio.Queue(_MOST)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def has_tasks(self) -> bool:
        """Whether tasks were started."""
        return bool(self._tasks)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Start a task that makes events."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._add(error)

    def put(self, event: Event) -> None:
        """Add an event."""
        self._add(event)

    def _add(self, found: Event | BaseException) -> None:
        if self._waiting.full():
            self._waiting.get_nowait()
            found = AgentError(f"the events of instances are not read: {_MOST} wait")
        self._waiting.put_nowait(found)

    async def read(self) -> AsyncIterator[Event]:
        """Yield all events, to one consumer. Raises what ended a task."""
        while True:
            found = await self._waiting.get()
            if isinstance(found, BaseException):
                raise found
            yield found

    async def close(self) -> None:
        """End the tasks."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
