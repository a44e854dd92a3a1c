"""Uploaded results of a task, in an S3 store or that of the platform: listed, downloaded, removed."""

import asyncio
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from nvcf_cli.api import Api, ApiProblem, Json, objects
from nvcf_cli.errors import CliError
from nvcf_worker.fetch.artifacts import Artifact, Logins
from nvcf_worker.fetch.client import Client, FetchError
from nvcf_worker.fetch.download import Budget, Downloader
from nvcf_worker.fetch.s3 import CHECKSUM_HEADER
from nvcf_worker.fetch.sources import RemoteFile, Sources

AT_ONCE = 8


@dataclass(frozen=True)
class StoredFile:
    """A file of the results: its path below their folder and its size in bytes.

    Of the platform's store also its SHA-256 in hex, and its id.
    """

    path: str
    size: int
    sha256: str | None = None
    asset_id: str | None = None


def is_uploaded(task: Json) -> bool:
    """Return whether the results of a task are uploaded."""
    return task.get("resultHandlingStrategy") == "UPLOAD"


def location_of(task: Json) -> str | None:
    """Return where a task's results are in an S3 store, None if they are not."""
    place = task.get("resultsLocation")
    return None if place is None else f"{str(place).rstrip('/')}/{task['id']}/"


async def stored_files(api: Api, task: Json, environ: Mapping[str, str] = os.environ) -> list[StoredFile]:
    """Return the files of a task in its store; the key of an S3 store is in AWS' variables.

    Raises CliError.
    """
    location = location_of(task)
    if location is None:
        return await _in_the_platform(api, task) if is_uploaded(task) else []
    async with Client(allow_private=True) as client:
        try:
            found = await Sources(client, Logins(), environ).files(_artifact(location, "results"))
        except FetchError as error:
            if "there is nothing" in str(error):
                return []
            raise CliError(f"the results in {location} cannot be listed: {error}") from error
    return [StoredFile(str(each.path), each.size or 0) for each in found]


async def download(api: Api, task: Json, to: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Download the files of a task into a folder; what is there already is left out.

    An interrupted download is continued. Files that have a checksum are held to it. Raises CliError.
    """
    location = location_of(task)
    async with Client(allow_private=True) as client:
        sources: Sources
        if location is None:
            sources = _Listed(client, api, await _in_the_platform(api, task))
        else:
            sources = _Checked(client, Logins(), environ)
        try:
            artifact = _artifact(location or "", to.name)
            await Downloader(client, sources, to.parent, Budget()).fetch([artifact])
        except FetchError as error:
            raise CliError(f"the results are not all downloaded: {error}; call again to go on") from error


async def remove(api: Api, task: Json) -> None:
    """Remove the files of a task from the platform's store, if they are there. Raises CliError."""
    if location_of(task) is not None or not is_uploaded(task):
        return
    files = await _in_the_platform(api, task)
    # The list goes last, so that an interrupted removal can be repeated.
    for asset_id in (*(each.asset_id for each in files), task["id"]):
        try:
            await api.call("DELETE", f"/v2/nvcf/assets/{asset_id}")
        except ApiProblem as problem:
            if problem.status != 404:
                raise


async def _in_the_platform(api: Api, task: Json) -> list[StoredFile]:
    try:
        listed = await api.call("GET", f"/v2/nvcf/assets/{task['id']}/content-redirect")
    except ApiProblem as problem:
        if problem.status == 404:
            return []
        raise
    # The list is what the task's program says: an id out of it could be any object of the account.
    task_id = uuid.UUID(task["id"])
    return [
        StoredFile(
            path := str(each["path"]), int(each["size"]), str(each["sha256"]), str(uuid.uuid5(task_id, path))
        )
        for each in objects(listed, "files")
    ]


def _artifact(location: str, name: str) -> Artifact:
    return Artifact("", name, location)


class _Checked(Sources):
    """Finds files of an S3 store with their checksums, which are in the metadata of each."""

    async def files(self, artifact: Artifact) -> list[RemoteFile]:
        found = await super().files(artifact)
        gate = asyncio.Semaphore(AT_ONCE)

        async def checked(file: RemoteFile) -> RemoteFile:
            headers = {**file.headers(), "Range": "bytes=0-0"}
            async with gate, self._client.get(file.url, headers) as response:
                return replace(file, sha256=response.headers.get(CHECKSUM_HEADER))

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(checked(each)) for each in found]
        return [each.result() for each in running]


class _Listed(Sources):
    """Files of the platform's store, which are known."""

    def __init__(self, client: Client, api: Api, files: list[StoredFile]) -> None:
        super().__init__(client, Logins(), {})
        self._api = api
        self._files = files

    async def files(self, artifact: Artifact) -> list[RemoteFile]:
        found = []
        headers = self._api.authorization
        for each in self._files:
            path = PurePosixPath(each.path)
            if path.is_absolute() or ".." in path.parts:
                raise FetchError(f"{each.path!r} is no path below the results")
            url = f"{self._api.url}/v2/nvcf/assets/{each.asset_id}/content-redirect"
            found.append(RemoteFile(path, url, lambda: headers, each.size, each.sha256))
        return found
