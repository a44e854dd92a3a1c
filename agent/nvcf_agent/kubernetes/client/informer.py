"""A copy of all objects of one kind, kept up to date by a list and a watch."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus

from nvcf_agent.kubernetes.client.api import WATCH_SECONDS, WATCH_SLACK_SECONDS, Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import Kind
from nvcf_agent.timings import growing_pause

_log = logging.getLogger(__name__)

Change = Callable[[Object | None, Object | None], None]
Key = tuple[str, str]

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
# A watch that ends sooner than this without a word counts as a failure, so that none starts again at once.
_SHORT_SECONDS = 1.0


@dataclass(eq=False)
class Informer:
    """Keeps `objects`, and calls `on_change(old, new)` for each change, with None for what does not exist.

    A change is the difference to what was known: of several quick ones only the last may be seen, and an
    object that was replaced by another of its name is first removed, then added. What happened while no watch
    was open is seen too. `on_change` must neither raise nor wait. Objects are not to be changed.

    `trim` takes away from a new object what nobody reads: 2,000 pods are 100 MB. Their `managedFields` go in
    any case.
    """

    api: Api
    kind: Kind
    _: KW_ONLY
    namespace: str | None = None
    labels: str | None = None
    on_change: Change = lambda _old, _new: None
    trim: Callable[[Object], None] = lambda _new: None
    watch_seconds: float = WATCH_SECONDS
    slack_seconds: float = WATCH_SLACK_SECONDS
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once `objects` is complete."""
    heard_at: float = float("-inf")
    """When the API server was last heard, in the event loop's time: `objects` was right then."""
    _version: str | None = None
    _objects: dict[Key, Object] = field(default_factory=dict)

    @property
    def objects(self) -> Mapping[Key, Object]:
        """All objects by namespace (empty for none) and name."""
        return self._objects

    async def run(self) -> None:
        """List and watch until cancelled, whatever the API server does."""
        failures = 0
        while True:
            try:
                if self._version is None:
                    await self._list()
                failures = 0 if await self._watch(self._version or "") else failures + 1
            except ApiError as error:
                # It is not worth finding out which errors a watch can go on after: a list is cheap.
                self._version = None
                failures += 1
                level = logging.INFO if error.status in (0, HTTPStatus.GONE) else logging.WARNING
                _log.log(level, "%s are listed anew: %s", self.kind.plural, error)
            if failures:
                chance = random.random()  # noqa: S311 - only spreads tries
                pause = growing_pause(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, failures, chance)
                await asyncio.sleep(pause)

    async def _list(self) -> None:
        listed = await self.api.list(self.kind, self.namespace, labels=self.labels)
        self._hear()
        found = {_key(each): each for each in listed.items}
        for key in self._objects.keys() - found.keys():
            self._put(key, None)
        for key, each in found.items():
            self._put(key, each)
        self._version = listed.version
        self.synced.set()

    async def _watch(self, version: str) -> bool:
        """Follow one watch to its end. Return False if it ended at once, without a word."""
        began = asyncio.get_running_loop().time()
        # Not all watches of a process, nor all agents', end in the same moment.
        seconds = self.watch_seconds * random.uniform(0.75, 1.0)  # noqa: S311
        watch = self.api.watch(
            self.kind,
            self.namespace,
            labels=self.labels,
            version=version,
            seconds=seconds,
            slack=self.slack_seconds,
        )
        heard = False
        async with aclosing(watch) as changes:
            async for seen in changes:
                heard = True
                self._hear()
                if seen.change != "BOOKMARK":
                    self._put(_key(seen.object), None if seen.change == "DELETED" else seen.object)
                self._version = seen.object["metadata"]["resourceVersion"]
        self._hear()
        return heard or self.heard_at - began >= _SHORT_SECONDS

    def _put(self, key: Key, new: Object | None) -> None:
        old = self._objects.get(key)
        if new is None:
            if old is not None:
                del self._objects[key]
                self.on_change(old, None)
            return
        if old is not None and old["metadata"]["uid"] != new["metadata"]["uid"]:
            self._put(key, None)
            old = None
        elif old is not None and old["metadata"]["resourceVersion"] == new["metadata"]["resourceVersion"]:
            return
        new["metadata"].pop("managedFields", None)
        self.trim(new)
        self._objects[key] = new
        self.on_change(old, new)

    def _hear(self) -> None:
        self.heard_at = asyncio.get_running_loop().time()


def _key(item: Object) -> Key:
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
