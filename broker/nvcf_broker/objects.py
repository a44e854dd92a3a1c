"""JetStream object store, streaming in both directions.

The stored form is that of the NATS object store (ADR-20: chunks on `$O.BUCKET.C.NUID`, one rolled-up metadata
message on `$O.BUCKET.M.NAME`), so the `nats` tools can read it. The library's own class is not used: it holds
whole objects in memory or needs a file, and reads without a deadline. Chunks are read one by one with direct
gets, at the reader's pace.
"""

import asyncio
import base64
import contextlib
import datetime
import hashlib
import json
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from nats.aio.msg import Msg
from nats.nuid import NUID

from nvcf_broker.errors import BrokerError, BrokerUnavailableError, JetStreamError
from nvcf_broker.jetstream import NANOSECONDS, JetStream, Requester

CHUNK_BYTES = 128 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024
COMMIT_ATTEMPTS = 3


class ObjectMissingError(BrokerError):
    """The object does not exist, or no longer."""


class ObjectExistsError(BrokerError):
    """An object of that name exists already and must not be replaced."""


class BucketFullError(BrokerError):
    """The bucket's size limit leaves no room for the object."""


@dataclass(frozen=True)
class StoredObject:
    """Metadata of an object. `size` is in bytes, `sequence` is that of the metadata message."""

    name: str
    size: int
    sequence: int
    nuid: str
    chunks: int
    headers: dict[str, str] = field(default_factory=dict)


class ObjectBucket:
    """One bucket, created on first use, with a life of `ttl` seconds and at most `max_bytes` bytes (-1: any).

    In a cluster `placement_tag` names the brokers that store it.
    """

    def __init__(
        self,
        requests: Requester,
        bucket: str,
        *,
        ttl: float = 0.0,
        max_bytes: int = -1,
        replicas: int = 1,
        placement_tag: str | None = None,
    ) -> None:
        self.bucket = bucket
        self.max_bytes = max_bytes
        self._jetstream = JetStream(requests)
        self._stream = f"OBJ_{bucket}"
        self._config: dict[str, Any] = {
            "name": self._stream,
            "subjects": [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
            "retention": "limits",
            "storage": "file",
            "num_replicas": replicas,
            "discard": "new",
            "max_age": int(ttl * NANOSECONDS),
            "max_bytes": max_bytes,
            "max_msg_size": MAX_MESSAGE_BYTES,
            "allow_rollup_hdrs": True,
            "allow_direct": True,
        }
        if placement_tag is not None:
            self._config["placement"] = {"tags": [placement_tag]}
        self._nuids = NUID()
        self._made = False

    async def ensure(self) -> None:
        """Create the bucket if it is missing. Raises BrokerError."""
        if not self._made:
            await self._jetstream.ensure_stream(self._config)
            self._made = True

    async def put(
        self,
        name: str,
        data: AsyncIterable[bytes],
        headers: dict[str, str] | None = None,
        *,
        replace: bool = True,
    ) -> StoredObject:
        """Store an object. It replaces one of that name once it is complete.

        Raises ObjectExistsError (unless `replace`), BucketFullError, BrokerError, and removes its chunks.
        After BrokerUnavailableError nobody knows whether it is stored: the chunks stay until they expire.
        """
        await self.ensure()
        earlier = await self.find(name) if replace else None
        nuid = self._nuids.next().decode()
        subject = self._chunks(nuid)
        digest = hashlib.sha256()
        size = chunks = 0
        try:
            async for block in _blocks(data):
                digest.update(block)
                await self._store(subject, block)
                size += len(block)
                chunks += 1
        except BaseException:
            # Nothing refers to them yet.
            await self._undo(nuid)
            raise
        encoded = base64.urlsafe_b64encode(digest.digest()).decode()
        info: dict[str, Any] = {
            "name": name,
            "bucket": self.bucket,
            "nuid": nuid,
            "size": size,
            "chunks": chunks,
            "digest": f"SHA-256={encoded}",
            "mtime": datetime.datetime.now(datetime.UTC).isoformat(),
            "options": {"max_chunk_size": CHUNK_BYTES},
        }
        if headers:
            info["headers"] = {key: [value] for key, value in headers.items()}
        committing = asyncio.ensure_future(
            self._commit(name, nuid, json.dumps(info).encode(), replace=replace)
        )
        try:
            # A caller that leaves now must not undo what may be stored already.
            sequence = await asyncio.shield(committing)
        except asyncio.CancelledError:
            await asyncio.wait({committing})
            if not committing.cancelled():
                committing.exception()
            raise
        if earlier is not None and earlier.nuid != nuid:
            await self._undo(earlier.nuid)
        return StoredObject(name, size, sequence, nuid, chunks, headers or {})

    async def _commit(self, name: str, nuid: str, info: bytes, *, replace: bool) -> int:
        """Store the metadata, which makes the object visible.

        An acknowledgement may be lost, so the broker is asked what it holds before anything is undone. An
        object without its chunks, left by an earlier failure, gives way.
        """
        # A first object has nothing to roll up, which would cost the broker a search.
        guards = {"Nats-Rollup": "sub"} if replace else {"Nats-Expected-Last-Subject-Sequence": "0"}
        failure: BrokerError
        for _ in range(COMMIT_ATTEMPTS):
            try:
                return await self._store(self._meta(name), info, guards)
            except (BrokerUnavailableError, ObjectExistsError) as error:
                failure = error
            except BrokerError:
                await self._undo(nuid)
                raise
            found = await self._latest(name)
            if found is not None and found.nuid == nuid:
                return found.sequence
            if found is not None and isinstance(failure, ObjectExistsError):
                if await self.is_whole(found):
                    break
                await self._drop(found)
        if isinstance(failure, ObjectExistsError):
            await self._undo(nuid)
        raise failure

    async def _undo(self, nuid: str) -> None:
        """Remove the chunks of an object that was not stored. The first error is the one to report."""
        with contextlib.suppress(BrokerError):
            await self._purge(self._chunks(nuid))

    async def _latest(self, name: str) -> StoredObject | None:
        """Return the metadata as the stream's leader knows it: a replica may lag behind."""
        message = await self._jetstream.message(self._stream, last_by_subj=self._meta(name))
        return None if message is None else _stored(message.data, message.sequence)

    async def is_whole(self, stored: StoredObject) -> bool:
        """Return whether all chunks of an object are there. Raises BrokerError."""
        if not stored.chunks:
            return True
        subject = self._chunks(stored.nuid)
        found = await self._jetstream.stream_info(self._stream, subjects_filter=subject)
        return found is not None and found.subjects.get(subject) == stored.chunks

    async def find(self, name: str) -> StoredObject | None:
        """Return the object's metadata, None if there is no such object. Raises BrokerError."""
        message = await self._direct(last_by_subj=self._meta(name))
        return (
            None if message is None else _stored(message.data, int((message.headers or {})["Nats-Sequence"]))
        )

    async def has(self, name: str) -> bool:
        """Return whether there is such an object, as the stream's leader knows it. Raises BrokerError."""
        await self.ensure()
        return await self._latest(name) is not None

    async def read(self, stored: StoredObject) -> AsyncIterator[bytes]:
        """Yield the object's bytes. Raises ObjectMissingError if a part of it is gone, BrokerError.

        Then its metadata is removed too, so that nobody finds it again and another one can take its name.
        """
        subject = self._chunks(stored.nuid)
        sequence = 1
        for _ in range(stored.chunks):
            found = await self._next_chunk(subject, sequence)
            if found is None:
                await self._drop(stored)
                raise ObjectMissingError(f"object {stored.name} has been deleted")
            data, sequence = found
            sequence += 1
            yield data

    async def _next_chunk(self, subject: str, sequence: int) -> tuple[bytes, int] | None:
        message = await self._direct(seq=sequence, next_by_subj=subject)
        if message is not None:
            return message.data, int((message.headers or {})["Nats-Sequence"])
        # A replica may lag behind: only the leader knows that it is gone.
        stored = await self._jetstream.message(self._stream, seq=sequence, next_by_subj=subject)
        return None if stored is None else (stored.data, stored.sequence)

    async def delete(self, name: str) -> bool:
        """Remove an object. Return False if there was none. Raises BrokerError."""
        stored = await self.find(name)
        if stored is None:
            return False
        await self._drop(stored)
        return True

    def _chunks(self, nuid: str) -> str:
        return f"$O.{self.bucket}.C.{nuid}"

    def _meta(self, name: str) -> str:
        return f"$O.{self.bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def _store(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> int:
        try:
            action = f"cannot write to bucket {self.bucket}"
            return await self._jetstream.publish(subject, data, headers, action=action)
        except JetStreamError as error:
            if error.conflict:
                raise ObjectExistsError(
                    f"bucket {self.bucket} holds an object of that name already"
                ) from None
            if error.account_full or "maximum" in error.description:
                raise BucketFullError(f"bucket {self.bucket} is full") from None
            raise

    async def _direct(self, **query: Any) -> Msg | None:
        await self.ensure()
        return await self._jetstream.direct_get(self._stream, **query)

    async def _drop(self, stored: StoredObject) -> None:
        """Remove this very object; a newer one of its name stays."""
        await self._jetstream.purge(self._stream, self._meta(stored.name), before=stored.sequence + 1)
        await self._purge(self._chunks(stored.nuid))

    async def _purge(self, subject: str) -> None:
        await self._jetstream.purge(self._stream, subject)


def _stored(data: bytes, sequence: int) -> StoredObject:
    info = json.loads(data)
    return StoredObject(
        name=str(info["name"]),
        size=int(info.get("size", 0)),
        sequence=sequence,
        nuid=str(info["nuid"]),
        chunks=int(info.get("chunks", 0)),
        headers={key: values[0] for key, values in (info.get("headers") or {}).items() if values},
    )


async def _blocks(data: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the same bytes in blocks of CHUNK_BYTES; the last one may be shorter."""
    buffer = bytearray()
    async for part in data:
        buffer += part
        while len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer[:CHUNK_BYTES])
            del buffer[:CHUNK_BYTES]
    if buffer:
        yield bytes(buffer)
