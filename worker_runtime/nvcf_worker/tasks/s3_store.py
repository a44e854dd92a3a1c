"""Upload files to an S3-compatible store: in parts, continued after a break, with checksums.

Requests are those of Amazon S3's REST API: PutObject, CreateMultipartUpload, UploadPart, ListParts,
CompleteMultipartUpload, AbortMultipartUpload, HeadObject. Each body is signed, so the store refuses one that
has changed on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote
from xml.etree.ElementTree import Element
from xml.sax.saxutils import escape

import aiohttp
from yarl import URL

from nvcf_broker.files import replace_file
from nvcf_worker.control.tls import client_context
from nvcf_worker.errors import WorkerError
from nvcf_worker.fetch.s3 import CHECKSUM_HEADER, S3Settings, parse_xml, signed_headers
from nvcf_worker.process.durations import Backoff

log = logging.getLogger("nvcf_worker")

PART_BYTES = 16 * 2**20
MOST_PARTS = 10_000
AT_ONCE = 4
"""Bodies that are sent at the same time, by all uploads of a store; each is in memory."""
TRIES = 8
BACKOFF = Backoff(first=0.5, limit=20.0)
REQUEST_SECONDS = 300.0
_TRANSIENT = frozenset((408, 425, 429))


class StoreError(WorkerError):
    """The store has not taken something."""

    exit_code = 1
    category = "upload-failed"

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class _Answer:
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class _Upload:
    """An upload in parts that has begun."""

    id: str
    sha256: str
    part_bytes: int


class S3Store:
    """A place in a bucket. Uploads that have begun are noted in the folder `state`."""

    def __init__(
        self, settings: S3Settings, bucket: str, prefix: str, state: Path, part_bytes: int = PART_BYTES
    ) -> None:
        self._settings = settings
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._state = state
        self._part_bytes = part_bytes
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=20)
        connector = aiohttp.TCPConnector(ssl=client_context())
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def put(self, path: Path, name: str) -> int:
        """Upload a file under a name below the prefix; return its size in bytes.

        The object has the file's SHA-256 as metadata. Raises StoreError, and OSError if the file cannot be
        read or has changed meanwhile.
        """
        key = f"{self._prefix}/{name}".lstrip("/")
        before = await asyncio.to_thread(path.stat)
        if before.st_size <= self._part_bytes:
            async with self._gate:
                body = await asyncio.to_thread(path.read_bytes)
                checksum = {CHECKSUM_HEADER: hashlib.sha256(body).hexdigest()}
                await self._call("PUT", key, body=body, headers=checksum)
            return len(body)
        await self._put_parts(path, key, before.st_size)
        after = await asyncio.to_thread(path.stat)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise OSError(f"{path} has changed while it was sent")
        return before.st_size

    async def publish(self) -> None:
        """Do nothing: the store itself lists its files."""

    # uploads in parts

    async def _put_parts(self, path: Path, key: str, size: int) -> None:
        sha256 = await asyncio.to_thread(_digest, path)
        upload, known = await self._begun(key, sha256)
        if upload is None:
            part = max(self._part_bytes, math.ceil(size / MOST_PARTS))
            upload = await self._begin(key, sha256, part)
        count = math.ceil(size / upload.part_bytes)
        numbers = iter(range(1, count + 1))
        tags: dict[int, str] = {}

        async def send_some() -> None:
            for number in numbers:
                tags[number] = await self._send_part(path, key, upload, number, known.get(number))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, count)):
                    group.create_task(send_some())
        except* (StoreError, OSError) as errors:
            raise first_error(errors) from None
        await self._complete(key, upload, [tags[number] for number in range(1, count + 1)], size)

    async def _begun(self, key: str, sha256: str) -> tuple[_Upload | None, dict[int, str]]:
        """Return an upload of this very file that has begun, and the tags of its parts."""
        try:
            upload = _Upload(**json.loads(self._note(key).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None, {}
        if upload.sha256 == sha256:
            with contextlib.suppress(StoreError):
                return upload, await self._parts(key, upload)
        else:
            with contextlib.suppress(StoreError):
                await self._call("DELETE", key, f"uploadId={quote(upload.id, safe='')}")
        return None, {}

    async def _begin(self, key: str, sha256: str, part_bytes: int) -> _Upload:
        answer = await self._call("POST", key, "uploads=", headers={CHECKSUM_HEADER: sha256})
        upload = _Upload(_text(answer, "UploadId"), sha256, part_bytes)
        # Without the note it works, too, but is not continued.
        with contextlib.suppress(OSError):
            self._state.mkdir(parents=True, exist_ok=True)
            replace_file(self._note(key), json.dumps(vars(upload)).encode())
        return upload

    async def _parts(self, key: str, upload: _Upload) -> dict[int, str]:
        found: dict[int, str] = {}
        marker = "0"
        while True:
            query = f"uploadId={quote(upload.id, safe='')}&max-parts=1000&part-number-marker={marker}"
            root = _xml(await self._call("GET", key, query))
            for each in root.findall("{*}Part"):
                found[int(each.findtext("{*}PartNumber") or 0)] = (each.findtext("{*}ETag") or "").strip('"')
            following = root.findtext("{*}NextPartNumberMarker") or "0"
            if root.findtext("{*}IsTruncated") != "true" or int(following) <= int(marker):
                return found
            marker = following

    async def _send_part(self, path: Path, key: str, upload: _Upload, number: int, known: str | None) -> str:
        """Send a part unless the store has it; return its tag."""
        async with self._gate:
            body = await asyncio.to_thread(_read, path, (number - 1) * upload.part_bytes, upload.part_bytes)
            # Stores that encrypt have other tags: there the part is sent again.
            if known == hashlib.md5(body, usedforsecurity=False).hexdigest():
                return known
            query = f"partNumber={number}&uploadId={quote(upload.id, safe='')}"
            answer = await self._call("PUT", key, query, body=body)
        return answer.headers.get("ETag", "").strip('"')

    async def _complete(self, key: str, upload: _Upload, tags: list[str], size: int) -> None:
        parts = "".join(
            f'<Part><PartNumber>{number}</PartNumber><ETag>"{escape(tag)}"</ETag></Part>'
            for number, tag in enumerate(tags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        try:
            answer = await self._call("POST", key, f"uploadId={quote(upload.id, safe='')}", body=body)
            if _xml(answer).tag.rpartition("}")[2] == "Error":
                raise _refusal(200, answer.body)
        except StoreError:
            # An earlier try may have been completed, and its response lost.
            if not await self._is_there(key, upload.sha256, size):
                raise
        self._note(key).unlink(missing_ok=True)

    async def _is_there(self, key: str, sha256: str, size: int) -> bool:
        try:
            answer = await self._call("HEAD", key)
        except StoreError:
            return False
        return answer.headers.get(CHECKSUM_HEADER) == sha256 and answer.headers.get("Content-Length") == str(
            size
        )

    def _note(self, key: str) -> Path:
        return self._state / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    # requests

    async def _call(
        self,
        method: str,
        key: str,
        query: str = "",
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> _Answer:
        """Make a request, again after transient failures. Raises StoreError."""
        if self._session is None:
            raise RuntimeError("the store is not open")
        url = self._settings.url(self._bucket, key, query)
        problem = StoreError("")
        for attempt in range(TRIES):
            if attempt:
                log.warning("%s; trying again", problem)
                await asyncio.sleep(BACKOFF.delay(attempt - 1, random.random()))  # noqa: S311 - jitter
            signed = signed_headers(self._settings, url, method=method, body=body, headers=headers)
            try:
                target = URL(url, encoded=True)
                async with self._session.request(
                    method, target, data=body or None, headers=signed, allow_redirects=False
                ) as response:
                    answer = _Answer(response.headers, await response.read())
                    status = response.status
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = StoreError(f"the store cannot be reached: {error or type(error).__name__}")
                continue
            if status < 300:
                return answer
            problem = _refusal(status, answer.body)
            if status < 500 and status not in _TRANSIENT:
                break
        raise problem


def _refusal(status: int, body: bytes) -> StoreError:
    """Return an error with the store's reason."""
    try:
        root = parse_xml(body)
        reason = ": ".join(filter(None, (root.findtext("{*}Code"), root.findtext("{*}Message"))))
    except ValueError:
        reason = ""
    return StoreError(f"the store answered {status}" + (f": {reason[:300]}" if reason else ""), status)


def _xml(answer: _Answer) -> Element:
    try:
        return parse_xml(answer.body)
    except ValueError as error:
        raise StoreError(f"the store's response cannot be read: {error}") from error


def _text(answer: _Answer, name: str) -> str:
    found = _xml(answer).findtext(f"{{*}}{name}")
    if not found:
        raise StoreError(f"the store's response has no {name}")
    return str(found)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset, os.SEEK_SET)
        return file.read(count)


def first_error(group: BaseExceptionGroup[StoreError | OSError]) -> StoreError | OSError:
    """Return the first error of a group of groups."""
    for each in group.exceptions:
        return first_error(each) if isinstance(each, BaseExceptionGroup) else each
    raise AssertionError("a group has an exception")
