"""Connections of the platform's own processes (gateway, agent, autoscaler) to the broker."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats.errors
import nats.js.errors
from nats.aio.client import Server
from nats.aio.msg import Msg

from nvcf_broker.client import BaseClient
from nvcf_broker.configuration import read_credentials
from nvcf_broker.errors import BrokerError, BrokerRefusedError, BrokerUnavailableError
from nvcf_broker.requests import end_task, raise_if_cancelled

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 5
PING_INTERVAL_SECONDS = 10
# Limit of messages buffered during an outage, in bytes. Beyond it publishing raises OutboundBufferLimitError.
PENDING_BYTES = 16 * 1024 * 1024
RECONNECT_FIRST_SECONDS = 0.05
RECONNECT_LONGEST_SECONDS = 5.0
# What a server says before it ends a connection whose token has expired.
_EXPIRED = "authentication expired"


def reconnect_delay(attempt: int, chance: float) -> float:
    """Return the seconds before reconnect attempt `attempt` (from 0). `chance` in [0, 1) is the jitter."""
    longest = min(RECONNECT_LONGEST_SECONDS, RECONNECT_FIRST_SECONDS * 2.0 ** min(attempt, 32))
    return longest * (0.5 + chance / 2)


def display_address(url: str) -> str:
    """Return a broker URL without user name and password, for messages."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme or 'nats'}://{parts.hostname or '?'}{port}"
    except ValueError:
        return "(malformed URL)"


class BrokerClient(BaseClient):
    """A `nats` client that reconnects for ever and notifies several listeners."""

    def __init__(self) -> None:
        super().__init__()
        self._listeners: list[Callable[[], None]] = []
        self._closed_for_good = asyncio.Event()
        self._label = "broker"

    @property
    def server_id(self) -> str:
        """Return the id of the server process at the other end; each start of a broker has another one."""
        return str(self._server_info.get("server_id", ""))

    def on_reconnect(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each reconnect. Return a function that removes it."""
        self._listeners.append(listener)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return remove

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """Do as the library's method, which may swallow a cancellation that arrives with the reply."""
        reply = await super().request(subject, payload, timeout, old_style, headers)
        raise_if_cancelled()
        return reply

    async def wait_closed(self) -> None:
        """Wait until the connection is closed for good, by `close()` or by the broker."""
        await self._closed_for_good.wait()

    async def close(self) -> None:
        """Close for good. Messages published during an outage are dropped."""
        if not self.is_connected:
            # The library would write them to a closed socket, fail, and close only half of its state.
            self._pending = []
            self._pending_data_size = 0
        with contextlib.suppress(OSError):
            await super().close()
        # The library waits only a moment for its reconnect attempts.
        if self._reconnection_task is not None and self._reconnection_task is not asyncio.current_task():
            await end_task(self._reconnection_task)
        self._closed_for_good.set()

    async def _process_err(self, err_msg: str) -> None:
        if self.options.get("token") is not None and not self.is_connecting and _EXPIRED in err_msg.lower():
            # The library would close for good; the next token is as good as the last one was.
            await self._process_op_err(nats.errors.AuthorizationError())
            return
        await super()._process_err(err_msg)

    async def _on_disconnected(self) -> None:
        if not self.is_closed:
            _log.warning("%s: connection lost, reconnecting", self._label)

    async def _on_reconnected(self) -> None:
        _log.info("%s: connected again", self._label)
        for listener in tuple(self._listeners):
            listener()

    async def _on_closed(self) -> None:
        _log.info("%s: connection closed", self._label)
        self._closed_for_good.set()

    async def _on_error(self, error: Exception) -> None:
        # During an outage each attempt fails alike. The loss itself has been logged.
        level = logging.DEBUG if isinstance(error, OSError) else logging.WARNING
        _log.log(level, "%s: %s", self._label, describe_error(error))


def describe_error(error: BaseException) -> str:
    """Return the text of a library error in one line without its decoration."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, nats.js.errors.APIError) and error.description:
        return error.description
    text = str(error).removeprefix("nats: ").strip("'\" ")
    return text or type(error).__name__


def _is_refusal(error: Exception) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, nats.errors.AuthorizationError)
        or "authorization" in text
        or "authentication" in text
    )


async def connect_broker(
    url: str,
    credentials_file: Path | None = None,
    *,
    name: str,
    timeout: float = 10.0,
    pending_bytes: int = PENDING_BYTES,
    inbox_prefix: str = "_INBOX",
    token: Callable[[], str] | None = None,
) -> BrokerClient:
    """Connect within `timeout` seconds. From then on the client reconnects for ever by itself.

    `url` is `nats://host:port` (several separated by commas), the file holds one line `user:password`.
    `token` replaces it: it is called at each connect, and a connection whose token expires connects again.
    Raises `BrokerError` (one line with the way out): unreadable credentials, refused, unreachable.
    """
    servers = [part.strip() for part in url.split(",") if part.strip()]
    user, password = (
        await asyncio.to_thread(read_credentials, credentials_file) if credentials_file else (None, None)
    )
    address = ", ".join(display_address(server) for server in servers)
    client = BrokerClient()
    client._label = f"broker {address}"
    last_error: list[Exception] = []
    refused = asyncio.Event()

    async def on_error(error: Exception) -> None:
        last_error[:] = [error]
        if connecting and _is_refusal(error):
            refused.set()
        await client._on_error(error)

    def choose_server(pool: list[Server], info: dict[str, Any]) -> tuple[Server | None, float]:
        chosen = min(pool, key=lambda server: server.reconnects)
        # Not for secrets: it only spreads reconnects in time.
        return chosen, reconnect_delay(chosen.reconnects, random.random())  # noqa: S311

    connecting = True
    attempt = asyncio.ensure_future(
        _establish(
            client,
            servers,
            name=name,
            user=user,
            password=password,
            error_cb=on_error,
            disconnected_cb=client._on_disconnected,
            reconnected_cb=client._on_reconnected,
            closed_cb=client._on_closed,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            reconnect_time_wait=0.2,
            max_reconnect_attempts=-1,
            ping_interval=PING_INTERVAL_SECONDS,
            max_outstanding_pings=2,
            pending_size=pending_bytes,
            inbox_prefix=inbox_prefix,
            token=token,
            reconnect_to_server_handler=choose_server,
        )
    )
    refusal = asyncio.ensure_future(refused.wait())
    try:
        await asyncio.wait({attempt, refusal}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if attempt.done() and not attempt.cancelled():
            _raise_connect_error(attempt.exception(), address)
            return client
        if refused.is_set():
            raise BrokerRefusedError(
                f"the broker at {address} refuses these credentials: check "
                + ("the agent's key or token" if token is not None else "--nats-credentials")
            )
        reason = describe_error(last_error[0]) if last_error else f"no answer within {timeout:g} s"
        raise BrokerUnavailableError(
            f"cannot reach the broker at {address} ({reason}): is it running, is --nats right?"
        )
    except BaseException:
        await _abandon(client, attempt)
        raise
    finally:
        connecting = False
        refusal.cancel()


def _raise_connect_error(error: BaseException | None, address: str) -> None:
    if error is None:
        return
    if isinstance(error, Exception):
        raise BrokerError(f"cannot use the broker address {address}: {describe_error(error)}") from error
    raise error


async def _establish(client: BrokerClient, servers: list[str], **options: Any) -> None:
    await client.connect(servers, **options)
    # The library reports success for a connection that the server closes without an answer.
    while True:
        try:
            await client.flush(CONNECT_TIMEOUT_SECONDS)
        except (nats.errors.Error, TimeoutError, OSError):
            if client.is_closed:
                raise
            await asyncio.sleep(RECONNECT_FIRST_SECONDS)
        else:
            return


async def _abandon(client: BrokerClient, attempt: "asyncio.Future[None]") -> None:
    await end_task(attempt)
    # The library's state is half open. Only the first error is worth reporting.
    with contextlib.suppress(Exception):
        async with asyncio.timeout(1):
            await client.close()
