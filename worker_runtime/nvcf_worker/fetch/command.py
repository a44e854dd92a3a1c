"""`nvcf-worker fetch`: download the models and resources of a function."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from pathlib import Path

from nvcf_worker.errors import ConfigurationError, WorkerError
from nvcf_worker.fetch.artifacts import FOLDERS, Artifact, Logins, artifact, parse_artifacts
from nvcf_worker.fetch.client import Client
from nvcf_worker.fetch.download import Budget, Downloader
from nvcf_worker.fetch.sources import Sources
from nvcf_worker.process import logs

log = logging.getLogger("nvcf_worker")

DEFAULT_FOLDER = "/config"
_LOGINS = "config.json"


def parser() -> argparse.ArgumentParser:
    """Return the parser of `nvcf-worker fetch`."""
    result = argparse.ArgumentParser(
        prog="nvcf-worker fetch",
        description="Download models and resources from http(s), s3, oci and file addresses.",
        epilog="Logins are read from config.json beside the list, in Docker's form.",
    )
    add = result.add_argument
    add("--artifacts", type=Path, metavar="FILE", help="list as JSON [the control plane's]")
    add("--to", type=Path, default=Path(DEFAULT_FOLDER), metavar="DIR", help="folder [%(default)s]")
    add("--max-bytes", type=int, metavar="N", help="limit of all files together [the disk's]")
    add("--files", type=Path, action="append", default=[], metavar="DIR", help="what file addresses may name")
    add("--allow-private", action="store_true", help="redirects may lead to private addresses")
    add("--plain-http", action="append", default=[], metavar="HOST", help="registry without TLS; repeatable")
    return result


def main(arguments: list[str]) -> None:
    """Run `nvcf-worker fetch`. Exits with code 1 if something cannot be downloaded."""
    options = parser().parse_args(arguments)
    logs.set_up(os.environ.get("NVCF_LOG_LEVEL") or "info")
    try:
        asyncio.run(run(options))
    except ConfigurationError:
        raise
    except WorkerError as error:
        log.critical("%s", error)
        raise SystemExit(error.exit_code) from None


async def run(options: argparse.Namespace) -> None:
    """Download everything. Raises WorkerError."""
    artifacts, logins = await asyncio.to_thread(_read, options.artifacts)
    if options.artifacts is None:
        artifacts = await _asked()
    if not artifacts:
        log.info("there is nothing to download")
        return
    plain = frozenset(options.plain_http)
    async with Client(allow_private=options.allow_private, plain=plain) as client:
        sources = Sources(client, logins, os.environ, tuple(options.files))
        await Downloader(client, sources, options.to, Budget(options.max_bytes)).fetch(artifacts)


def _read(path: Path | None) -> tuple[list[Artifact], Logins]:
    if path is None:
        return [], Logins()
    try:
        beside = path.with_name(_LOGINS)
        logins = Logins.parse(beside.read_bytes()) if beside.exists() else Logins()
        return parse_artifacts(path.read_bytes()), logins
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from error


async def _asked() -> list[Artifact]:
    """Ask the control plane, as an init container without arguments does."""
    # Imported here because it imports gRPC.
    from nvcf_worker.control.config import WorkerConfig
    from nvcf_worker.control.worker_service import WorkerService

    config = WorkerConfig.from_environment(os.environ)
    answer = await WorkerService(config, lambda: config.worker_token).artifacts()
    return [
        artifact(FOLDERS[each.kind], {"name": each.name, "uri": file.url, "path": file.path})
        for each in answer.artifacts
        for file in each.files
    ]
