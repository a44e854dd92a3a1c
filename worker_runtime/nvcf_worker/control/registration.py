"""Register the worker with the platform, keep its token and regions up to date, and cache the token.

The cache file (protocol.md, section 5.7) has the members of an OAuth 2 token response (RFC 6749 section 5.1)
and the expiry as `expiry`, as NVIDIA's containers beside a worker read and write them; `instanceId` is ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nvcf_broker.files import replace_file
from nvcf_proto import settings
from nvcf_proto.environment import NVCF_FQDN_GRPC, NVCF_WORKER_TOKEN, SHARED_CONFIG_DIR, WORKER_TOKEN_FILE
from nvcf_worker.control.config import WorkerConfig
from nvcf_worker.control.worker_service import Connected, WorkerService
from nvcf_worker.errors import ControlError, StartupError
from nvcf_worker.process.durations import Backoff

log = logging.getLogger("nvcf_worker")

START_BACKOFF = Backoff(first=0.25, limit=10.0)
REFRESH_BACKOFF = Backoff(first=2.0, limit=60.0)
MIN_REFRESH_DELAY = 1.0
LOOK_AT_CLOCK_SECONDS = 30.0

# The latest time that can be written as a date.
_LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


class Registration:
    """Calls ConnectOnce at the start and before the token expires (protocol.md, section 5.2)."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self.service = WorkerService(config, self.token)
        self._cache = config.shared_dir / WORKER_TOKEN_FILE
        self.connected = Connected("", (), config.worker_token, None)
        self.renewal_failed: Callable[[], None] = lambda: None
        """Called after each failed renewal of the token."""

    def token(self) -> str:
        """Return the newest worker token."""
        return self.connected.token

    async def register(self) -> None:
        """Connect for the first time, with the cached token if it is usable. Raises StartupError."""
        self._adopt(await connect_at_start(self.service, self._known_tokens()))
        log.info("registered with the platform; regions: %s", ", ".join(self.connected.regions))

    async def keep_renewed(self, changed: Callable[[], None]) -> None:
        """Renew the token until cancelled, and call `changed` after each renewal.

        Raises StartupError if the platform refuses the worker and its token has expired.
        """
        while True:
            delay = refresh_delay(time.time(), self.connected.expires_at, random.random())  # noqa: S311
            await _sleep(max(MIN_REFRESH_DELAY, delay))
            self._adopt(await self._renew())
            changed()

    def _known_tokens(self) -> list[str]:
        cached, given = load_token(self._cache), self._config.worker_token
        if cached is None or not cached.usable(self._config.instance_id, time.time()):
            return [given]
        return list(dict.fromkeys((cached.token, given)))

    def _adopt(self, connected: Connected) -> None:
        self.connected = connected
        if not self._config.cache_token:
            with contextlib.suppress(OSError):
                self._cache.unlink()
            return
        cached = CachedToken(connected.token, connected.expires_at, self._config.instance_id)
        try:
            store_token(self._cache, cached)
        except OSError as error:
            log.warning("the worker token is not cached: %s; is %s writable?", error, SHARED_CONFIG_DIR)

    async def _renew(self) -> Connected:
        attempt = 0
        while True:
            try:
                return await self.service.connect_once(self.token())
            except ControlError as error:
                expires_at = self.connected.expires_at
                if error.permanent and expires_at is not None and time.time() > expires_at:
                    raise StartupError(
                        f"{error}. The worker token has expired and could not be renewed."
                    ) from error
                log.warning("the worker token could not be renewed: %s", error)
                self.renewal_failed()
            await asyncio.sleep(REFRESH_BACKOFF.delay(attempt, random.random()))  # noqa: S311 - jitter
            attempt += 1


async def _sleep(seconds: float) -> None:
    """Sleep, but wake up early when the wall clock, by which tokens end, was set forward meanwhile."""
    steady, wall = time.monotonic() + seconds, time.time() + seconds
    while (left := min(steady - time.monotonic(), wall - time.time())) > 0:  # noqa: ASYNC110 - no event tells
        await asyncio.sleep(min(left, LOOK_AT_CLOCK_SECONDS))


async def connect_at_start(
    service: WorkerService,
    tokens: list[str],
    *,
    clock: Callable[[], float] = time.monotonic,
    limit: float = settings.CONNECT_START_TIMEOUT,
) -> Connected:
    """Call ConnectOnce with the first of `tokens` that is accepted.

    Transient errors are retried for `limit` seconds. So is PERMISSION_DENIED, because platforms return it to
    workers of a version that is not active yet. Any other refusal of the last token is final. Raises
    StartupError with the reason.
    """
    deadline = clock() + limit
    remaining = list(tokens)
    attempt = 0
    while True:
        try:
            return await service.connect_once(remaining[0])
        except ControlError as error:
            if error.permanent and len(remaining) > 1:
                log.warning("a worker token was refused (%s); trying the other one", error)
                refused = remaining.pop(0)
                if not error.forbidden:
                    continue
                # The platform may accept it later, so the tokens are tried in turns.
                remaining.append(refused)
            delay = START_BACKOFF.delay(attempt, random.random())  # noqa: S311 - jitter
            over = clock() + delay > deadline
            if error.permanent and (over or not error.forbidden):
                raise StartupError(
                    f"{error}. The platform does not accept this worker: check {NVCF_WORKER_TOKEN} and the "
                    "function and instance ids."
                ) from error
            if over:
                raise StartupError(
                    f"{error}. Gave up after {limit:.0f} s: is {NVCF_FQDN_GRPC} right and reachable?"
                ) from error
            log.warning("%s; trying again in %.1f s", error, delay)
        attempt += 1
        await asyncio.sleep(delay)


def refresh_delay(now: float, expires_at: float | None, randomness: float) -> float:
    """Return the seconds until ConnectOnce has to be called again (protocol.md, section 5.2).

    20 to 30 minutes, or 90 % of the token's remaining life if that is shorter. An expired token is renewed at
    once. `now` and `expires_at` are Unix times in seconds; `randomness` is a number in [0, 1).
    """
    span = settings.CONNECT_REFRESH_MAX - settings.CONNECT_REFRESH_MIN
    regular = settings.CONNECT_REFRESH_MIN + span * randomness
    if expires_at is None:
        return regular
    return max(0.0, min(regular, (expires_at - now) * settings.CONNECT_REFRESH_LIFE_SHARE))


# --- the token cache


@dataclass(frozen=True)
class CachedToken:
    """A worker token. `expires_at` is a Unix time in seconds; None if unknown.

    `instance_id` is None in a file that another container of this instance wrote.
    """

    token: str
    expires_at: float | None
    instance_id: str | None

    def usable(self, instance_id: str, now: float) -> bool:
        """Whether the token belongs to this instance and has not expired."""
        return self.instance_id in (None, instance_id) and (self.expires_at is None or self.expires_at > now)


def load_token(path: Path) -> CachedToken | None:
    """Read the cache; None if there is none or it is unreadable, so that the environment's token is used."""
    try:
        members = json.loads(path.read_text(encoding="utf-8"))
        expiry, instance_id = members.get("expiry"), members.get("instanceId")
        return CachedToken(
            token=str(members["access_token"]),
            expires_at=None if expiry is None else _unix_time(datetime.fromisoformat(expiry)),
            instance_id=None if instance_id is None else str(instance_id),
        )
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError):
        return None


def _unix_time(moment: datetime) -> float | None:
    # Go writes its zero time for an unknown time.
    return None if moment.year == 1 else moment.timestamp()


def store_token(path: Path, cached: CachedToken) -> None:
    """Replace the cache file, with mode 0600. Raises OSError."""
    members = {"access_token": cached.token, "token_type": "Bearer"}
    if cached.expires_at is not None and 0 <= cached.expires_at <= _LAST:
        members["expiry"] = datetime.fromtimestamp(cached.expires_at, UTC).isoformat()
    if cached.instance_id is not None:
        members["instanceId"] = cached.instance_id
    replace_file(path, json.dumps(members).encode())
