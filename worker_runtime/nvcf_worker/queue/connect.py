"""Opening the worker's broker connection (protocol.md, section 2.1)."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client, Server

from nvcf_broker.client import BaseClient
from nvcf_broker.requests import end_task
from nvcf_proto import settings, subjects
from nvcf_proto.environment import NKEY_SEED, NVCF_FQDN_NATS
from nvcf_proto.tokens import encode_broker_token
from nvcf_worker.control.config import WorkerConfig
from nvcf_worker.control.tls import client_context
from nvcf_worker.errors import ConfigurationError, StartupError
from nvcf_worker.process.durations import Backoff

log = logging.getLogger("nvcf_worker")

FIRST_RETRY = 0.25
RECONNECT_BACKOFF = Backoff(first=0.1, limit=settings.NATS_MAX_RECONNECT_WAIT)
_DENIED = re.compile(r"permissions violation for (?:publish|subscription) to \"([^\"]+)\"", re.IGNORECASE)
PENDING_BYTES = 8 * 1024 * 1024

Callback = Callable[[], Awaitable[None]]


def choose_server(servers: list[Server], randomness: float) -> tuple[Server, float]:
    """Return the server to try next, which is the one that failed least, and after how many seconds."""
    best = min(servers, key=lambda server: server.reconnects)
    return best, RECONNECT_BACKOFF.delay(best.reconnects, randomness)


def authentication(config: WorkerConfig, token: Callable[[], str]) -> dict[str, Any]:
    """Return connection options: nkey if there is a seed, none if the URL has user info, else the token."""
    if config.nkey_seed is not None:
        return {"nkeys_seed_str": config.nkey_seed}
    if any(urlsplit(server).username for server in config.nats_servers):
        return {}
    # A callable, so that each reconnect presents the newest token.
    return {"token": lambda: encode_broker_token(token())}


def denied_subject(text: str) -> str | None:
    """Return the subject in a permissions error, in lower case as nats-py gives it."""
    match = _DENIED.search(text)
    return None if match is None else match[1]


async def open_connection(
    config: WorkerConfig,
    token: Callable[[], str],
    *,
    on_reconnect: Callback,
    on_closed: Callback,
    on_lame_duck: Callback,
    on_denied: Callable[[str], None],
    limit: float | None,
    counts: Counter[str],
) -> Client:
    """Connect; try for `limit` seconds (None: for ever). Raises StartupError with the last reason.

    on_denied: called with each subject that the connection may not publish or subscribe to. counts: where
    errors and lost connections are counted.
    """
    last: Exception | None = None
    logged_at = 0.0

    async def on_disconnect() -> None:
        if not connection.is_closed:
            counts["disconnects"] += 1

    async def on_error(error: Exception) -> None:
        nonlocal last, logged_at
        counts["errors"] += 1
        subject = denied_subject(str(error))
        if subject is not None:
            on_denied(subject)
            return
        last = error
        now = time.monotonic()
        # nats-py reports each failed attempt; one line every few seconds is enough.
        if now - logged_at > settings.NATS_MAX_RECONNECT_WAIT or not logged_at:
            logged_at = now
            log.warning("broker connection: %s", str(error) or type(error).__name__)

    def next_server(servers: list[Server], _: dict[str, Any]) -> tuple[Server | None, float]:
        return choose_server(servers, random.random())  # noqa: S311 - jitter

    secure = any(urlsplit(server).scheme in ("tls", "wss") for server in config.nats_servers)
    connection = BaseClient()
    connecting = asyncio.ensure_future(
        connection.connect(
            servers=list(config.nats_servers),
            name=subjects.worker_connection_name(config.version_id, config.instance_id),
            inbox_prefix=subjects.worker_inbox_prefix(config.version_id, config.instance_id),
            connect_timeout=settings.NATS_CONNECT_TIMEOUT,
            ping_interval=settings.NATS_PING_INTERVAL,
            max_reconnect_attempts=-1,
            reconnect_time_wait=FIRST_RETRY,  # type: ignore[arg-type] # any number of seconds works
            reconnect_to_server_handler=next_server,
            pending_size=PENDING_BYTES,
            error_cb=on_error,
            disconnected_cb=on_disconnect,
            reconnected_cb=on_reconnect,
            closed_cb=on_closed,
            lame_duck_mode_cb=on_lame_duck,
            tls=client_context() if secure else None,
            **authentication(config, token),
        )
    )
    try:
        try:
            async with asyncio.timeout(limit):
                await asyncio.wait({connecting})
        finally:
            await end_task(connecting)
        connecting.result()
    except asyncio.CancelledError:
        await connection.close()
        raise
    except TimeoutError:
        await connection.close()
        raise StartupError(
            f"no connection to the broker within {limit:.0f} s: {last or 'no reply'}. "
            f"Is {NVCF_FQDN_NATS} right and reachable?"
        ) from last
    except ImportError as error:
        raise ConfigurationError(f"{NKEY_SEED} is set but the package nkeys is not installed") from error
    except nats.errors.Error as error:
        raise ConfigurationError(f"{NVCF_FQDN_NATS} or {NKEY_SEED} is unusable: {error}") from error
    return connection


async def close_connection(connection: Client) -> None:
    """Close a connection for good, and end its attempts to reconnect, which the library leaves running."""
    await connection.close()
    if connection._reconnection_task is not None:
        await end_task(connection._reconnection_task)
