"""In-memory mirror of a JetStream key-value bucket, with guarded writes.

The library's own watcher is not used. After an outage it continues from the last sequence it saw, so keys
that expired or were purged meanwhile stay, and it cannot tell a bucket that was created anew from the old
one. Here each session reads a full snapshot and then follows. A gap, silence, a reconnect or age ends the
session, and the next one starts with a snapshot.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Self, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nvcf_broker.bucket import Bucket
from nvcf_broker.connection import BrokerClient, describe_error
from nvcf_broker.errors import BrokerError, BrokerUnavailableError
from nvcf_broker.records import Entry, Records, Update, parse_update
from nvcf_broker.requests import raise_if_cancelled

_log = logging.getLogger(__name__)

T = TypeVar("T")

HEARTBEAT_SECONDS = 2.0
SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
RESYNC_SECONDS = 60.0
RETRY_LONGEST_SECONDS = 2.0


class _SessionEnded(Exception):
    """The mirror must start again from a snapshot. The text says why."""


@dataclass
class _Session:
    """One consumer of the bucket: the messages that arrived (None: start again), and how many were read."""

    arrived: asyncio.Queue[Msg | None] = field(default_factory=asyncio.Queue)
    delivered: int = 0

    async def take(self, message: Msg) -> None:
        self.arrived.put_nowait(message)

    async def next(self) -> Msg:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                message = await self.arrived.get()
        except TimeoutError:
            raise _SessionEnded("silence") from None
        if message is None:
            raise _SessionEnded("reconnected")
        return message


class KvMirror(Generic[T]):
    """All live records of a bucket, decoded, readable without waiting.

    `decode` turns a stored value into a record. A value that it rejects with ValueError is logged once and
    skipped. `encode` is its inverse. `on_change(key, record or None)` is called on the loop after each
    change, in order, and must not raise. Use the mirror as a context manager, or run `run()` in a task group.
    Reads are as fresh as the broker's last message, and include this mirror's own writes at once.
    """

    def __init__(
        self,
        client: Client,
        bucket: str,
        decode: Callable[[bytes], T],
        encode: Callable[[T], bytes],
        *,
        on_change: Callable[[str, T | None], None] | None = None,
        resync_seconds: float = RESYNC_SECONDS,
        replicas: int = 1,
    ) -> None:
        self.bucket = bucket
        self._client = client
        self._bucket = Bucket(client, bucket, replicas=replicas)
        self._encode = encode
        self._records: Records[T] = Records(bucket, decode)
        self._on_change = on_change
        self._resync_seconds = resync_seconds
        self._ready = asyncio.Event()
        self._changed = asyncio.Condition()
        self._session = _Session()
        self._reconnected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # --- reading

    def get(self, key: str) -> T | None:
        """Return the record under `key`, or None."""
        entry = self._records.entries.get(key)
        return entry.value if entry is not None else None

    def entry(self, key: str) -> Entry[T] | None:
        """Return record and revision, for a guarded `update` or `delete`."""
        return self._records.entries.get(key)

    def items(self) -> list[tuple[str, T]]:
        """Return a copy of all keys with their records."""
        return [(key, entry.value) for key, entry in self._records.entries.items()]

    def values(self) -> list[T]:
        """Return a copy of all records."""
        return [entry.value for entry in self._records.entries.values()]

    def keys(self) -> list[str]:
        """Return a copy of all keys."""
        return list(self._records.entries)

    def is_deleted(self, key: str) -> bool:
        """Return whether somebody has deleted the record, in the last hours.

        A record may also be missing because the bucket was lost or restored from a backup.
        """
        return key in self._records.deleted

    def __len__(self) -> int:
        return len(self._records.entries)

    def __contains__(self, key: object) -> bool:
        return key in self._records.entries

    @property
    def is_ready(self) -> bool:
        """Return whether a first snapshot has been read completely."""
        return self._ready.is_set()

    async def ready(self, timeout: float = 15.0) -> None:
        """Wait for the first complete snapshot. Raises `BrokerUnavailableError` after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError:
            raise BrokerUnavailableError(
                f"the bucket {self.bucket} could not be read within {timeout:g} s"
            ) from None

    async def wait_for(self, predicate: Callable[["KvMirror[T]"], bool], timeout: float) -> None:
        """Wait until `predicate(mirror)` holds; it is evaluated after each change. Raises TimeoutError."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: predicate(self))

    async def wait_change(self, timeout: float | None = None) -> bool:
        """Wait for any change. Return False if there was none within `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait()
                return True
        return False

    # --- writing

    async def put(self, key: str, value: T, *, life: float | None = None) -> int:
        """Write a record, whatever the present one is; with `life` it goes after so many seconds.

        Return the revision.
        Raises `BrokerUnavailableError` without an acknowledgement; the write may still take effect.
        """
        return await self._own(await self._bucket.put(key, self._encode(value), life=life))

    async def create(self, key: str, value: T) -> int:
        """Write a record that must not exist yet. Raises `KeyExistsError`."""
        return await self._own(await self._bucket.create(key, self._encode(value)))

    async def update(self, key: str, value: T, revision: int) -> int:
        """Write only if `revision` is still the latest. Raises `RevisionConflictError`."""
        return await self._own(await self._bucket.put(key, self._encode(value), revision))

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Remove a record, with `revision` only that one. Raises `RevisionConflictError`."""
        await self._own(await self._bucket.delete(key, revision))

    async def refresh(self, key: str) -> Entry[T] | None:
        """Read a record from the broker instead of waiting for it; `key` may have `*` as one part.

        Raises `BrokerError`.
        """
        newest = await self._bucket.last(key)
        if newest is None:
            return None
        await self._apply(newest)
        return self.entry(newest.key)

    async def was_deleted(self, key: str) -> bool:
        """Ask the broker for `is_deleted`; `key` may have `*` as one part. Raises `BrokerError`."""
        newest = await self._bucket.last(key)
        return newest is not None and newest.deleted

    async def _own(self, update: Update) -> int:
        await self._apply(update)
        return update.revision

    # --- following

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run(), name=f"mirror of {self.bucket}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop following. The records stay readable."""
        if self._task is not None:
            while not self._task.done():
                # The library may swallow a cancellation that arrives together with a reply.
                self._task.cancel()
                await asyncio.wait({self._task}, timeout=1)
            self._task = None

    async def run(self) -> None:
        """Follow the bucket until cancelled, through every outage of the broker."""
        remove = (
            self._client.on_reconnect(self._interrupt) if isinstance(self._client, BrokerClient) else None
        )
        failures = 0
        try:
            while True:
                raise_if_cancelled()
                try:
                    await self._follow()
                except _SessionEnded as over:
                    _log.debug("bucket %s: reading again (%s)", self.bucket, over)
                    failures = 0
                except (nats.errors.Error, BrokerError, OSError, TimeoutError) as error:
                    if self._client.is_closed:
                        _log.info(
                            "bucket %s: the connection is closed, the mirror stays as it is", self.bucket
                        )
                        return
                    failures += 1
                    _log.warning("bucket %s: %s, trying again", self.bucket, describe_error(error))
                    await self._pause(min(RETRY_LONGEST_SECONDS, 0.05 * 2.0 ** min(failures, 10)))
        finally:
            if remove is not None:
                remove()

    def _interrupt(self) -> None:
        self._reconnected.set()
        self._session.arrived.put_nowait(None)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._reconnected.wait()

    async def _follow(self) -> None:
        session = self._session = _Session()
        self._reconnected.clear()
        info = await self._bucket.ensure()
        self._records.begin(info.created, info.last_sequence)
        subscription = await self._client.subscribe(self._client.new_inbox(), cb=session.take)
        consumer = ""
        try:
            created = await self._bucket.follow(subscription.subject, HEARTBEAT_SECONDS)
            consumer = created.name
            if not created.pending:
                await self._snapshot_read()
            await self._read(session, asyncio.get_running_loop().time() + self._resync_seconds)
        finally:
            await self._end(subscription, consumer)

    async def _end(self, subscription: Subscription, consumer: str) -> None:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()
        # Best effort: the broker removes a consumer without a listener by itself.
        if consumer and self._client.is_connected:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._client.publish(f"$JS.API.CONSUMER.DELETE.{self._bucket.stream}.{consumer}", b"")

    async def _read(self, session: _Session, until: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            raise_if_cancelled()
            if self._records.is_complete and loop.time() >= until:
                raise _SessionEnded("periodic")
            message = await session.next()
            if message.headers and "Status" in message.headers:
                await self._control(session, message)
                continue
            metadata = message.metadata
            session.delivered += 1
            if metadata.sequence.consumer != session.delivered:
                raise _SessionEnded("gap")
            key = message.subject[len(self._bucket.prefix) :]
            await self._apply(parse_update(key, message.data, message.headers, metadata.sequence.stream))
            if metadata.num_pending == 0:
                await self._snapshot_read()

    async def _control(self, session: _Session, message: Msg) -> None:
        headers: Mapping[str, str] = message.headers or {}
        if headers.get("Status") != "100":
            raise _SessionEnded(headers.get("Description", "consumer ended"))
        if message.reply:
            await message.respond(b"")
        last = headers.get("Nats-Last-Consumer", "")
        if last.isdigit() and int(last) != session.delivered:
            raise _SessionEnded("missed messages")

    async def _apply(self, update: Update) -> None:
        if self._records.apply(update):
            await self._notify([update.key])

    async def _snapshot_read(self) -> None:
        gone = self._records.complete()
        self._ready.set()
        await self._notify(gone)

    async def _notify(self, keys: list[str]) -> None:
        if self._on_change is not None:
            for key in keys:
                self._on_change(key, self.get(key))
        async with self._changed:
            self._changed.notify_all()
