"""The worker's standing with the platform: its newest token and regions, renewed in time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from nvcf_proto.environment import SHARED_CONFIG_DIR, WORKER_TOKEN_FILE
from nvcf_worker.control import token_cache
from nvcf_worker.control.config import WorkerConfig
from nvcf_worker.control.worker_service import Connected, ControlPlane, connect_at_start
from nvcf_worker.errors import ControlError, StartupError
from nvcf_worker.process.backoff import Backoff, refresh_delay

log = logging.getLogger("nvcf_worker")

REFRESH_BACKOFF = Backoff(first=2.0, limit=60.0)
MIN_REFRESH_DELAY = 1.0


class Enrolment:
    """ConnectOnce at the start and again in time (protocol.md section 5, Token life)."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._control = ControlPlane(config)
        self._cache = config.shared_dir / WORKER_TOKEN_FILE
        self.connected = Connected("", (), config.worker_token, None)
        self.renewal_failed: Callable[[], None] = lambda: None
        """Called for each renewal of the token that failed."""

    def token(self) -> str:
        """The newest worker token."""
        return self.connected.token

    async def begin(self) -> None:
        """First call, with the cached token if there is a good one. Raises StartupError."""
        self._adopt(await connect_at_start(self._control, self._known_tokens()))
        log.info("accepted by the platform; regions: %s", ", ".join(self.connected.regions))

    async def keep(self, changed: Callable[[], None]) -> None:
        """Renew the token until cancelled, telling `changed` each time.

        Raises StartupError when the platform refuses the worker and its token has expired.
        """
        while True:
            delay = refresh_delay(time.time(), self.connected.expires_at, random.random())  # noqa: S311
            await asyncio.sleep(max(MIN_REFRESH_DELAY, delay))
            self._adopt(await self._connect_again())
            changed()

    async def provision(self, region: str) -> None:
        """Ask for stream and consumer in a region. Raises ControlError."""
        await self._control.provision(self.token(), region)

    async def refresh_upload(self, request_id: str, api: str) -> str:
        """A new upload address for a large result, from the service at `api`. Raises ControlError."""
        return await self._control.refresh_upload(self.token(), request_id, api)

    async def refresh_asset(self, request_id: str, asset_id: str, api: str) -> str:
        """A new download address of an input asset, from the service at `api`. Raises ControlError."""
        return await self._control.refresh_asset(self.token(), request_id, asset_id, api)

    async def download_url(self, request_id: str, nca_id: str) -> str:
        """Where the caller finds an uploaded large result. Raises ControlError."""
        return await self._control.download_url(self.token(), request_id, nca_id)

    def _known_tokens(self) -> list[str]:
        cached, given = token_cache.load(self._cache), self._config.worker_token
        if (
            cached is None
            or cached.token == given
            or not cached.usable(self._config.instance_id, time.time())
        ):
            return [given]
        return [cached.token, given]

    def _adopt(self, connected: Connected) -> None:
        self.connected = connected
        cached = token_cache.CachedToken(connected.token, connected.expires_at, self._config.instance_id)
        try:
            token_cache.store(self._cache, cached)
        except OSError as error:
            log.warning("the worker token is not cached: %s; is %s writable?", error, SHARED_CONFIG_DIR)

    async def _connect_again(self) -> Connected:
        attempt = 0
        while True:
            try:
                return await self._control.connect_once(self.token())
            except ControlError as error:
                expires_at = self.connected.expires_at
                if error.permanent and expires_at is not None and time.time() > expires_at:
                    raise StartupError(
                        f"{error}. The worker token has expired and is not renewed."
                    ) from error
                log.warning("the worker token could not be renewed: %s", error)
                self.renewal_failed()
            await asyncio.sleep(REFRESH_BACKOFF.delay(attempt, random.random()))  # noqa: S311 - jitter
            attempt += 1
