"""Keeps the load of each version in the broker, in steps of five seconds, for `nvcf-simulate`.

The leader adds what its samples differ by, and writes each version's block of the hour every 30 s. Writes
add to what is stored, so a new leader goes on where the last one ended. What a killed leader has not written
is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field

from nvcf_broker.errors import BrokerError, JetStreamError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.ids import new_id
from nvcf_proto.scaling_history import (
    HOUR,
    STEP_SECONDS,
    STREAM,
    HistoryBlock,
    Step,
    added,
    history_stream_config,
    history_subject,
)

_log = logging.getLogger(__name__)

WRITE_EVERY = 30.0
# Samples further apart than this are not of one leader's time.
LONGEST_GAP = 30.0
VERSIONS_PER_ACCOUNT = 100
MAX_BLOCKS = 4000
_AT_ONCE = 8
_END_PATIENCE = 3.0


@dataclass(frozen=True)
class Sample:
    """Counters and levels of a version at one instant. `busy` is a counter in seconds, `devices` a level."""

    at: float
    arrivals: int
    completions: int
    busy: float
    queued: int
    devices: int

    def step_since(self, before: Sample) -> tuple[int, Step]:
        """Return the hour and the step of what happened since the sample before."""
        middle = (before.at + self.at) / 2
        hour = int(middle // HOUR)
        passed = self.at - before.at
        return hour, (
            int(middle - hour * HOUR) // STEP_SECONDS,
            max(0, self.arrivals - before.arrivals),
            self.completions - before.completions,
            round(max(0.0, self.busy - before.busy), 3),
            round(before.queued * passed, 3),
            round(before.devices * passed, 3),
        )


@dataclass
class _Pending:
    """A block's part that is not written yet, and what is known of the stored one."""

    block: HistoryBlock
    steps: dict[int, Step] = field(default_factory=dict)
    startups: list[float] = field(default_factory=list)
    stored: tuple[int, HistoryBlock | None] | None = None
    doubtful: HistoryBlock | None = None

    @property
    def has_grown(self) -> bool:
        """Whether there is something to write."""
        return bool(self.steps or self.startups or self.doubtful)

    def take(self) -> HistoryBlock:
        """Return the part, and begin a new one."""
        steps, startups = tuple(self.steps.values()), tuple(self.startups)
        self.steps, self.startups = {}, []
        return self.block.replace(steps=steps, startups=startups, write_id=new_id())

    def put_back(self, part: HistoryBlock) -> None:
        """Take a part back that was not stored."""
        for step in part.steps:
            self.steps[step[0]] = added(self.steps.get(step[0]), step)
        self.startups = [*part.startups, *self.startups]


class ScalingHistory:
    """Blocks of all versions. `add` is called by the leader only."""

    def __init__(self, requests: Requester, replicas: int = 1) -> None:
        self._jetstream = JetStream(requests)
        self._replicas = replicas
        self._last: dict[str, tuple[Sample, frozenset[str]]] = {}
        self._blocks: dict[tuple[str, int], _Pending] = {}

    def add(self, sample: Sample, block: HistoryBlock, startups: dict[str, float]) -> None:
        """Add what happened since the version's last sample. `block` has its settings and no steps.

        `startups` are the start-up times of the instances that exist, by their keys.
        """
        version_id = block.version_id
        before = self._last.get(version_id)
        self._last[version_id] = (sample, frozenset(startups))
        if before is None or not 0 < sample.at - before[0].at <= LONGEST_GAP:
            return
        hour, step = sample.step_since(before[0])
        new = [round(seconds, 2) for key, seconds in startups.items() if key not in before[1]]
        if not new and not any(step[1:]):
            return
        pending = self._pending(block.replace(hour=hour))
        if pending is not None:
            pending.steps[step[0]] = added(pending.steps.get(step[0]), step)
            pending.startups += new

    def begin_anew(self) -> None:
        """Forget all last samples: the clock was set, or another replica has led meanwhile."""
        self._last.clear()

    def forget(self, version_id: str) -> None:
        """Forget the last sample of a version that is gone. What is not written yet is still written."""
        self._last.pop(version_id, None)

    def _pending(self, block: HistoryBlock) -> _Pending | None:
        key = (block.version_id, block.hour)
        found = self._blocks.get(key)
        if found is not None:
            found.block = block
            return found
        accounts = Counter(each.block.nca_id for (_, hour), each in self._blocks.items() if hour == key[1])
        if len(self._blocks) >= MAX_BLOCKS or accounts[block.nca_id] >= VERSIONS_PER_ACCOUNT:
            return None
        found = self._blocks[key] = _Pending(block)
        return found

    async def run(self) -> None:
        """Write blocks until cancelled. Then call `finish`."""
        while True:
            await asyncio.sleep(WRITE_EVERY)
            await self.write()

    async def finish(self) -> None:
        """Write what is left, as far as that takes no longer than a few seconds."""
        try:
            async with asyncio.timeout(_END_PATIENCE):
                await self.write()
        except TimeoutError:
            _log.warning("the last part of the scaling history is not written")

    async def write(self) -> None:
        """Write all blocks that have grown. What cannot be written is tried again the next time."""
        newest = max((hour for _, hour in self._blocks), default=0)
        due = [each for each in self._blocks.values() if each.has_grown]
        try:
            if due:
                limit = (await self._jetstream.account_info()).limit
                await self._jetstream.ensure_stream(history_stream_config(self._replicas, limit))
            for begin in range(0, len(due), _AT_ONCE):
                async with asyncio.TaskGroup() as tasks:
                    for pending in due[begin : begin + _AT_ONCE]:
                        tasks.create_task(self._write(pending))
        except BrokerError as error:
            _log.warning("the scaling history waits: %s", error)
        for key, block in list(self._blocks.items()):
            if key[1] < newest and not block.has_grown:
                del self._blocks[key]

    async def _write(self, pending: _Pending) -> None:
        subject = history_subject(pending.block.version_id, pending.block.hour)
        part: HistoryBlock | None = None
        try:
            if pending.stored is None:
                pending.stored = await self._read(subject)
            revision, stored = pending.stored
            if pending.doubtful is not None:
                if stored is None or stored.write_id != pending.doubtful.write_id:
                    pending.put_back(pending.doubtful)
                pending.doubtful = None
            part = pending.take()
            whole = part if stored is None else stored.merged(part)
            pending.stored = None
            headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
            action = f"cannot write {subject}"
            number = await self._jetstream.publish(subject, whole.to_bytes(), headers, action=action)
            pending.stored = (number, whole)
        except JetStreamError as error:
            # Refused: another leader wrote meanwhile, or there is no room.
            if part is not None:
                pending.put_back(part)
            if not error.conflict:
                _log.warning("%s", error)
        except (BrokerError, asyncio.CancelledError) as error:
            # Whether it was stored is looked up before it is tried again.
            pending.doubtful = part
            if isinstance(error, asyncio.CancelledError):
                raise
            _log.warning("%s", error)

    async def _read(self, subject: str) -> tuple[int, HistoryBlock | None]:
        message = await self._jetstream.message(STREAM, last_by_subj=subject)
        if message is None:
            return 0, None
        try:
            return message.sequence, HistoryBlock.from_bytes(message.data)
        except InvalidRecord as error:
            _log.warning("%s is written anew: %s", subject, error)
            return message.sequence, None
