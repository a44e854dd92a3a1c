"""Putting together what requests of one worker need."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nvcf_proto.environment import SHARED_CONFIG_DIR
from nvcf_worker.control.config import WorkerConfig
from nvcf_worker.control.registration import Registration
from nvcf_worker.errors import JournalError
from nvcf_worker.exchange.assets import AssetFetcher, HttpClient
from nvcf_worker.exchange.files import default_directory
from nvcf_worker.exchange.large_results import LargeResults
from nvcf_worker.queue.journal import FILE_NAME, Journal
from nvcf_worker.runner import Services

log = logging.getLogger("nvcf_worker")


def services(
    config: WorkerConfig, stores: HttpClient, registration: Registration, broken: Callable[[str], None]
) -> Services:
    """Directories, assets and large results. Blocks: it empties directories of a predecessor."""
    base = None
    if config.asset_dir is None or config.response_dir is None:
        base = default_directory(config.shared_dir, config.instance_id)
    return Services(
        config.asset_dir or (base or config.shared_dir) / "assets",
        config.response_dir or (base or config.shared_dir) / "responses",
        AssetFetcher(stores, registration),
        LargeResults(stores, registration),
        broken,
    )


def open_journal(config: WorkerConfig) -> Journal | None:
    """The journal of what this instance holds; without a writable folder the worker goes on without."""
    path = config.shared_dir / FILE_NAME
    try:
        config.shared_dir.mkdir(parents=True, exist_ok=True)
        return Journal.open(path, config.instance_id, 2 * config.concurrency + 64)
    except (OSError, JournalError) as error:
        log.warning("no in-flight journal: %s; is %s writable?", error, SHARED_CONFIG_DIR)
        return None
