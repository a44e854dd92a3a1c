"""JetStream object store, streaming in both directions.

The stored form is that of the NATS object store (ADR-20: chunks on `$O.BUCKET.C.NUID`, one rolled-up metadata
message on `$O.BUCKET.M.NAME`), so the `nats` tools can read it. The library's own class is not used: it holds
whole objects in memory or needs a file, and reads without a deadline. Chunks are read one by one with direct
gets, at the reader's pace.
"""

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

from nvcf_broker.errors import BrokerError, JetStreamError
from nvcf_broker.jetstream import NANOSECONDS, JetStream, Requester

CHUNK_BYTES = 128 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024


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

        Raises ObjectExistsError (unless `replace`), BucketFullError, BrokerError; then its chunks are
        removed.
        """
        await self.ensure()
        earlier = await self.find(name)
        if earlier is not None and not replace:
            raise ObjectExistsError(f"bucket {self.bucket} holds {name} already")
        nuid = self._nuids.next().decode()
        subject = f"$O.{self.bucket}.C.{nuid}"
        digest = hashlib.sha256()
        size = chunks = 0
        try:
            async for block in _blocks(data):
                digest.update(block)
                await self._store(subject, block)
                size += len(block)
                chunks += 1
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
            guards = {"Nats-Rollup": "sub"}
            if not replace:
                guards["Nats-Expected-Last-Subject-Sequence"] = "0"
            sequence = await self._store(self._meta(name), json.dumps(info).encode(), guards)
        except BaseException:
            # The first error is the one to report.
            with contextlib.suppress(BrokerError):
                await self._purge(subject)
            raise
        if earlier is not None:
            await self._purge(f"$O.{self.bucket}.C.{earlier.nuid}")
        return StoredObject(name, size, sequence, nuid, chunks, headers or {})

    async def find(self, name: str) -> StoredObject | None:
        """Return the object's metadata, None if there is no such object. Raises BrokerError."""
        message = await self._direct(last_by_subj=self._meta(name))
        return None if message is None else _stored(message)

    async def read(self, stored: StoredObject) -> AsyncIterator[bytes]:
        """Yield the object's bytes. Raises ObjectMissingError if it is deleted meanwhile, BrokerError."""
        subject = f"$O.{self.bucket}.C.{stored.nuid}"
        sequence = 1
        for _ in range(stored.chunks):
            message = await self._direct(seq=sequence, next_by_subj=subject)
            if message is None:
                raise ObjectMissingError(f"object {stored.name} has been deleted")
            sequence = int((message.headers or {})["Nats-Sequence"]) + 1
            yield message.data

    async def delete(self, name: str) -> bool:
        """Remove an object. Return False if there was none. Raises BrokerError."""
        stored = await self.find(name)
        if stored is None:
            return False
        await self._purge(self._meta(name))
        await self._purge(f"$O.{self.bucket}.C.{stored.nuid}")
        return True

    async def oldest(self) -> StoredObject | None:
        """Return the object with the oldest metadata. Raises BrokerError."""
        message = await self._direct(seq=1, next_by_subj=f"$O.{self.bucket}.M.>")
        return None if message is None else _stored(message)

    async def usage(self) -> tuple[int, int]:
        """Return the number of objects and the bytes stored. Raises BrokerError."""
        await self.ensure()
        found = await self._jetstream.stream_info(self._stream, subjects_filter=f"$O.{self.bucket}.M.>")
        return (0, 0) if found is None else (len(found.subjects), found.size)

    async def bytes_used(self) -> int:
        """Return the bucket's size on disk in bytes, with headers and metadata. Raises BrokerError."""
        await self.ensure()
        found = await self._jetstream.stream_info(self._stream)
        return 0 if found is None else found.size

    @staticmethod
    def overhead(size: int) -> int:
        """Return the approximate overhead of an object of `size` bytes, in bytes."""
        return 2048 + 128 * (size // CHUNK_BYTES + 1)

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
            if "maximum" in error.description:
                raise BucketFullError(f"bucket {self.bucket} is full") from None
            raise

    async def _direct(self, **query: Any) -> Msg | None:
        await self.ensure()
        return await self._jetstream.direct_get(self._stream, **query)

    async def _purge(self, subject: str) -> None:
        await self._jetstream.purge(self._stream, subject)


def _stored(message: Msg) -> StoredObject:
    info = json.loads(message.data)
    return StoredObject(
        name=str(info["name"]),
        size=int(info.get("size", 0)),
        sequence=int((message.headers or {})["Nats-Sequence"]),
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
