"""Large results and files: they are zipped and uploaded; the caller gets 302 (protocol.md, section 4.8)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

import aiohttp
from yarl import URL

from nvcf_proto import headers as names
from nvcf_proto.pb.nvcf_pb2 import WorkerInvokeFunctionRequest as Request
from nvcf_proto.problem import problem_for
from nvcf_worker.errors import ControlError, FunctionError, ResultNotDelivered, WorkerError
from nvcf_worker.exchange.assets import EXPIRED, HttpClient
from nvcf_worker.exchange.files import RequestFiles
from nvcf_worker.function.content import decoded
from nvcf_worker.function.response import HeaderPairs, Outcome, Reply, StreamReply, problem_reply
from nvcf_worker.process.durations import Backoff

log = logging.getLogger("nvcf_worker")

ATTEMPTS = 5
BACKOFF = Backoff(first=0.3, limit=10.0)
COMPRESSION_LEVEL = 1
MAX_DETAIL = 4096
SOURCE = "inference-service"
ABOUT_THE_BODY = frozenset(
    f"content-{name}" for name in ("type", "length", "encoding", "range", "digest")
) | {"etag", "digest"}


class ResultCredentials(Protocol):
    """Makes URLs for the upload and the download of large results."""

    async def refresh_upload(self, request_id: str, api: str) -> str:
        """Return a new upload URL, from the service at `api` (directResponseUrl). Raises ControlError."""

    async def download_url(self, request_id: str, nca_id: str) -> str:
        """Return where the caller downloads an uploaded result. Raises ControlError."""


class LargeResults:
    """The last steps of compatibility mode with a complete response."""

    def __init__(self, http: HttpClient, credentials: ResultCredentials) -> None:
        self._http = http
        self._credentials = credentials

    async def finish(self, message: Request, outcome: Outcome, files: RequestFiles | None) -> Outcome:
        """Return the response that the caller gets in place of `outcome`; most often `outcome` itself.

        A stream is sent as it comes unless its size is known and too large, or there are files already when
        it begins. Raises ResultNotDelivered.
        """
        try:
            return await self._finish(message, outcome, files)
        except BaseException:
            if isinstance(outcome, StreamReply):
                await outcome.source.aclose()
            raise

    async def _finish(self, message: Request, outcome: Outcome, files: RequestFiles | None) -> Outcome:
        if outcome.status >= 400:
            if is_problem(outcome.headers):
                return outcome
            return as_problem(outcome if isinstance(outcome, Reply) else await _beginning(outcome))
        found = await asyncio.to_thread(files.results) if files is not None and files.output_made else []
        size = len(outcome.body) if isinstance(outcome, Reply) else outcome.length or 0
        limit = message.maxDirectResponseSizeBytes
        if not found and not (message.largeResponseUrl and limit and size > limit):
            return outcome
        url = message.largeResponseUrl or await self._place(message)
        base = None if files is None else files.output_path
        if isinstance(outcome, Reply):
            return await self._upload(message, url, outcome.body, found, base)
        spooled = await spool(outcome)
        try:
            return await self._upload(message, url, spooled, found, base)
        finally:
            await asyncio.to_thread(spooled.unlink, missing_ok=True)

    async def _place(self, message: Request) -> str:
        """Return an upload URL for a call that came without one."""
        try:
            url = await self._credentials.refresh_upload(message.requestId, message.directResponseUrl)
        except ControlError as error:
            log.info("there is no upload URL for a result: %s", error)
            url = ""
        if not url:
            raise ResultNotDelivered(
                "the function left files in its output directory, and this call has no place for them"
            )
        return url

    async def _upload(
        self, message: Request, url: str, body: bytes | Path, found: Sequence[Path], base: Path | None
    ) -> Reply:
        request_id = message.requestId
        descriptor, name = await asyncio.to_thread(tempfile.mkstemp, ".zip", "nvcf-result-")
        archive, file = Path(name), os.fdopen(descriptor, "wb")
        try:
            await asyncio.to_thread(pack, file, request_id, body, found, base)
            await self._put(message, url, archive)
            location = await self._credentials.download_url(request_id, message.ncaId)
        except ControlError as error:
            log.error("there is no download URL for the large result: %s", error)
            raise ResultNotDelivered("the result was too large to be sent directly") from None
        except (OSError, ValueError) as error:
            log.error("the large result could not be packed: %s", error)
            raise ResultNotDelivered("the result was too large to be sent directly") from None
        finally:
            # Also while it is still written: the thread cannot be interrupted, and closes the file.
            await asyncio.to_thread(archive.unlink, missing_ok=True)
        return Reply(302, [("location", location)], b"")

    async def _put(self, message: Request, url: str, archive: Path) -> None:
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(BACKOFF.delay(attempt - 1, random.random()))  # noqa: S311 - jitter
            try:
                status = await self._put_once(url, archive)
                if status < 300:
                    return
                problem = f"the store answered {status}"
                if status in EXPIRED:
                    api = message.directResponseUrl
                    url = await self._credentials.refresh_upload(message.requestId, api)
            except ControlError as error:
                problem = str(error)
                if error.permanent:
                    break
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
        log.error("the large result could not be uploaded: %s", problem)
        raise ResultNotDelivered("the result was too large to be sent directly and could not be stored")

    async def _put_once(self, url: str, archive: Path) -> int:
        file = await asyncio.to_thread(archive.open, "rb")
        try:
            exact, headers = URL(url, encoded=True), {"Content-Type": "application/zip"}
            async with self._http.session().put(exact, data=file, headers=headers) as response:
                return response.status
        finally:
            await asyncio.to_thread(file.close)


async def spool(stream: StreamReply) -> Path:
    """Write a streamed body to a temporary file. Raises ResultNotDelivered when that fails."""
    descriptor, name = await asyncio.to_thread(tempfile.mkstemp, ".body", "nvcf-result-")
    path, file = Path(name), os.fdopen(descriptor, "wb")
    try:
        await asyncio.to_thread(file.write, stream.first)
        while True:
            try:
                chunk = await stream.source.__anext__()
            except StopAsyncIteration:
                break
            await asyncio.to_thread(file.write, chunk)
    except BaseException as error:
        await asyncio.to_thread(path.unlink, missing_ok=True)
        if not isinstance(error, Exception) or isinstance(error, WorkerError):
            raise
        log.error("the large result broke off", exc_info=error)
        raise ResultNotDelivered("the function failed in the middle of its response") from None
    finally:
        await asyncio.to_thread(file.close)
        await stream.source.aclose()
    return path


def pack(
    file: IO[bytes], request_id: str, body: bytes | Path, found: Sequence[Path], base: Path | None
) -> None:
    """Write a zip archive to `file`: the files by their names below `base`, the body as `ID.response`.

    Written to disk first because object stores want the length of an upload in advance. Closes `file`. Raises
    OSError, and ValueError for a name that is no text.
    """
    # Not strict: files dated 1970 are common; the format starts in 1980.
    with (
        file,
        zipfile.ZipFile(
            file, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION_LEVEL, strict_timestamps=False
        ) as archive,
    ):
        for item in found:
            archive.write(item, str(item.relative_to(base)) if base is not None else item.name)
        if isinstance(body, Path):
            archive.write(body, f"{request_id}.response")
        elif body:
            archive.writestr(f"{request_id}.response", body)


def _media_type(headers: HeaderPairs) -> str:
    return next((value for name, value in headers if name.lower() == "content-type"), "")


def is_problem(headers: HeaderPairs) -> bool:
    """Return whether a response is a problem document already."""
    return _media_type(headers).partition(";")[0].strip().lower() == names.PROBLEM_JSON


async def _beginning(stream: StreamReply) -> Reply:
    """Return the beginning of an error response that is a stream; a problem document has room for no more."""
    body = bytearray(stream.first)
    try:
        while len(body) <= MAX_DETAIL:
            body += await stream.source.__anext__()
    except StopAsyncIteration:
        pass
    except Exception as error:  # noqa: BLE001 - what came is enough
        log.info("a response of %d broke off: %s", stream.status, error)
    finally:
        await stream.source.aclose()
    return Reply(stream.status, stream.headers, bytes(body))


def as_problem(reply: Reply) -> Reply:
    """Return a response >= 400 as problem+json, with its error as detail (protocol.md, section 5.5)."""
    if is_problem(reply.headers):
        return reply
    encoding = ",".join(value for name, value in reply.headers if name.lower() == "content-encoding")
    try:
        body = decoded(reply.body, encoding, MAX_DETAIL)
        detail = error_detail(body, _media_type(reply.headers))
    except FunctionError as error:
        detail = f"The function's error cannot be shown: {error.detail}" if encoding else None
    kept = [pair for pair in reply.headers if pair[0].lower() not in ABOUT_THE_BODY]
    made = problem_reply(problem_for(reply.status, detail, source=SOURCE))
    return Reply(made.status, [*kept, *made.headers], made.body)


def error_detail(body: bytes, media_type: str) -> str | None:
    """Return the detail in an error's body: its member `error` or `detail`, else its text if short."""
    if len(body) > MAX_DETAIL:
        return None
    try:
        members = json.loads(body)
    except (ValueError, RecursionError):
        members = None
    if isinstance(members, dict):
        said = members.get("error", members.get("detail"))
        if said is None:
            return None
        return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    if media_type.startswith("text/plain") and body:
        return body.decode(errors="replace")
    return None
