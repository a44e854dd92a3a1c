"""Results of a task in an S3 store: listed, and downloaded with their checksums."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nvcf_cli.api import Json
from nvcf_cli.errors import CliError
from nvcf_worker.fetch.artifacts import Artifact, Logins
from nvcf_worker.fetch.client import Client, FetchError
from nvcf_worker.fetch.download import Budget, Downloader
from nvcf_worker.fetch.s3 import CHECKSUM_HEADER
from nvcf_worker.fetch.sources import RemoteFile, Sources

AT_ONCE = 8


@dataclass(frozen=True)
class StoredFile:
    """A file of the results: its path below their folder, and its size in bytes."""

    path: str
    size: int


def location_of(task: Json) -> str | None:
    """Return where a task's results are in a store, None for a task without UPLOAD."""
    place = task.get("resultsLocation")
    return None if place is None else f"{str(place).rstrip('/')}/{task['id']}/"


async def stored_files(location: str, environ: Mapping[str, str] = os.environ) -> list[StoredFile]:
    """Return the files at a location, with the key in AWS' variables. Raises CliError."""
    async with Client(allow_private=True) as client:
        try:
            found = await Sources(client, Logins(), environ).files(_artifact(location, "results"))
        except FetchError as error:
            if "there is nothing" in str(error):
                return []
            raise CliError(f"the results in {location} cannot be listed: {error}") from error
    return [StoredFile(str(each.path), each.size or 0) for each in found]


async def download(location: str, to: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Download the files of a location into a folder; what is there already is left out.

    An interrupted download is continued. Files that were uploaded with a checksum are held to it. Raises
    CliError.
    """
    async with Client(allow_private=True) as client:
        sources = _Checked(client, Logins(), environ)
        try:
            await Downloader(client, sources, to.parent, Budget()).fetch([_artifact(location, to.name)])
        except FetchError as error:
            raise CliError(f"the results are not all downloaded: {error}; call again to go on") from error


def _artifact(location: str, name: str) -> Artifact:
    return Artifact("", name, location)


class _Checked(Sources):
    """Finds files with their checksums, which are in the metadata of each."""

    async def files(self, artifact: Artifact) -> list[RemoteFile]:
        found = await super().files(artifact)
        gate = asyncio.Semaphore(AT_ONCE)

        async def checked(file: RemoteFile) -> RemoteFile:
            async with (
                gate,
                self._client.get(file.url, {**file.headers(), "Range": "bytes=0-0"}) as response,
            ):
                return replace(file, sha256=response.headers.get(CHECKSUM_HEADER))

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(checked(each)) for each in found]
        return [each.result() for each in running]
