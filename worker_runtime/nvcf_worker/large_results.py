"""Results that are too large for the way back, or files: zipped, uploaded, answered 302 (section 4)."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import aiohttp

from nvcf_proto import headers as names
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.problem import Problem, problem_for
from nvcf_worker.assets import EXPIRED, HttpClient
from nvcf_worker.backoff import Backoff
from nvcf_worker.errors import ControlError, ResultNotDelivered
from nvcf_worker.files import RequestFiles
from nvcf_worker.response import Reply, problem_reply

log = logging.getLogger("nvcf_worker")

ATTEMPTS = 5
BACKOFF = Backoff(first=0.3, limit=10.0)
COMPRESSION_LEVEL = 1
MAX_DETAIL = 4096
SOURCE = "inference-service"


class ResultCredentials(Protocol):
    """Who says where large results go and where callers find them."""

    async def refresh_upload(self, request_id: str) -> str:
        """A new upload address. Raises ControlError."""

    async def download_url(self, request_id: str, nca_id: str) -> str:
        """Where the caller gets an uploaded result. Raises ControlError."""


class LargeResults:
    """Compatibility mode's last steps with a complete answer."""

    def __init__(self, http: HttpClient, credentials: ResultCredentials) -> None:
        self._http = http
        self._credentials = credentials

    async def finish(
        self, message: nvcf_pb2.WorkerInvokeFunctionRequest, reply: Reply, files: RequestFiles | None
    ) -> Reply:
        """What the caller gets instead of `reply`; most often that very reply.

        Raises ResultNotDelivered.
        """
        if reply.status >= 400:
            return as_problem(reply)
        found = await asyncio.to_thread(files.results) if files is not None and files.output_made else []
        limit = message.maxDirectResponseSizeBytes
        if not found and not (message.largeResponseUrl and limit and len(reply.body) > limit):
            return reply
        if not message.largeResponseUrl:
            raise ResultNotDelivered(
                "the function left files in its output directory, and this call has no place for them"
            )
        return await self._upload(message, reply, found, None if files is None else files.output_path)

    async def _upload(
        self,
        message: nvcf_pb2.WorkerInvokeFunctionRequest,
        reply: Reply,
        found: Sequence[Path],
        base: Path | None,
    ) -> Reply:
        request_id = message.requestId
        try:
            archive = await asyncio.to_thread(pack, request_id, reply.body, found, base)
        except OSError as error:
            log.error("the large result could not be packed: %s", error)
            raise ResultNotDelivered("the result was too large to be sent directly") from None
        try:
            await self._put(request_id, message.largeResponseUrl, archive)
            location = await self._credentials.download_url(request_id, message.ncaId)
        except ControlError as error:
            log.error("the large result has no address to be fetched from: %s", error)
            raise ResultNotDelivered("the result was too large to be sent directly") from None
        finally:
            await asyncio.to_thread(archive.unlink, missing_ok=True)
        return Reply(302, [("location", location)], b"")

    async def _put(self, request_id: str, url: str, archive: Path) -> None:
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
                    url = await self._credentials.refresh_upload(request_id)
            except ControlError as error:
                problem = str(error)
                if error.permanent:
                    break
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
        log.error("the large result could not be uploaded: %s", problem)
        raise ResultNotDelivered("the result was too large to be sent directly and could not be stored")

    async def _put_once(self, url: str, archive: Path) -> int:
        file = await asyncio.to_thread(archive.open, "rb")
        try:
            headers = {"Content-Type": "application/zip"}
            async with self._http.session().put(url, data=file, headers=headers) as response:
                return response.status
        finally:
            await asyncio.to_thread(file.close)


def pack(request_id: str, body: bytes, found: Sequence[Path], base: Path | None) -> Path:
    """A zip archive in a temporary file: the files by their names below `base`, the body as `ID.response`.

    Written to disk first because object stores want the length of an upload in advance. Raises OSError.
    """
    with tempfile.NamedTemporaryFile(prefix="nvcf-result-", suffix=".zip", delete=False) as file:
        path = Path(file.name)
        try:
            with zipfile.ZipFile(
                file, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION_LEVEL, allowZip64=True
            ) as archive:
                for item in found:
                    archive.write(item, str(item.relative_to(base)) if base is not None else item.name)
                if body:
                    archive.writestr(f"{request_id}.response", body)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return path


def as_problem(reply: Reply) -> Reply:
    """An answer >= 400 as problem+json, with its `{"error": ...}` or short text as detail (section 5)."""
    media_type = next((value for name, value in reply.headers if name.lower() == "content-type"), "")
    if media_type.partition(";")[0].strip().lower() == names.PROBLEM_JSON:
        return reply
    problem: Problem = problem_for(reply.status, error_detail(reply.body, media_type), source=SOURCE)
    kept = [pair for pair in reply.headers if pair[0].lower() not in ("content-type", "content-length")]
    made = problem_reply(problem)
    return Reply(made.status, [*kept, *made.headers], made.body)


def error_detail(body: bytes, media_type: str) -> str | None:
    """What an error's body says: its member `error` or `detail`, else its text if that is short."""
    if len(body) > MAX_DETAIL:
        return None
    try:
        members = json.loads(body)
    except ValueError:
        members = None
    if isinstance(members, dict):
        said = members.get("error", members.get("detail"))
        if said is None:
            return None
        return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    if media_type.startswith("text/plain") and body:
        return body.decode(errors="replace")
    return None
