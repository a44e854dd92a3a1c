"""The nats-server of a local installation: loopback only, JetStream on files, credentials made once."""

import asyncio
import json
import logging
import secrets
import signal
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nvcf_broker.binary import Binary, find_binary
from nvcf_broker.configuration import (
    BrokerFiles,
    BrokerIdentity,
    ensure_credentials,
    public_key,
    read_credentials,
    read_identity,
    render_configuration,
    write_identity,
)
from nvcf_broker.disk import disk_budget
from nvcf_broker.errors import BrokerError, BrokerUnavailableError
from nvcf_broker.files import write_private
from nvcf_broker.process import describe_exit, free_port, port_is_free, spawn, stop_process
from nvcf_proto.budget import DiskBudget

_log = logging.getLogger(__name__)

DEFAULT_TAGS = ("aws-region:local",)
_POLL_SECONDS = 0.02
_LOG_LIMIT_BYTES = 16 * 1024 * 1024


async def server_name_at(port: int, timeout: float = 1.0) -> str | None:
    """Return the name in the greeting of the NATS server on a loopback port; None without one."""
    writer = None
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            line = await reader.readline()
        kind, _, document = line.partition(b" ")
        if kind != b"INFO":
            return None
        greeting = json.loads(document)
        return str(greeting["server_name"]) if greeting.get("jetstream") else None
    except (OSError, TimeoutError, ValueError, KeyError, AttributeError):
        return None
    finally:
        if writer is not None:
            writer.close()


class LocalBroker:
    """One installation's broker as a child of this process.

    `start`, `stop`, `restart` and `kill` run it directly. Another supervisor uses `prepare`, `command` and
    `wait_ready` instead. The port and all credentials stay the same after restarts, so clients reconnect.
    It stores at most `data_max` bytes; without that a part of the disk, chosen at the first start.
    `sync_always`: it waits for the disk after each message, else every two minutes.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        tags: Sequence[str] = DEFAULT_TAGS,
        data_max: int | None = None,
        sync_always: bool = False,
    ) -> None:
        self._sync_always = sync_always
        self.files = BrokerFiles(directory.absolute())
        self.credentials_file = self.files.credentials
        self.control_credentials_file = self.files.control
        self.system_credentials_file = self.files.system
        self.callout_seed_file = self.files.callout_seed
        self._wanted_port = port
        self._tags = tuple(tags)
        self._binary: Binary | None = None
        self._data_max = data_max
        self.budget: DiskBudget | None = None
        self._identity: BrokerIdentity | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Return the address without credentials. Raises `BrokerError` before `prepare`."""
        if self._identity is None:
            raise BrokerError("the local broker has no address before its first start")
        return f"nats://127.0.0.1:{self._identity.port}"

    @property
    def pid(self) -> int | None:
        """Return the process id of the broker, None while it does not run."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Return whether the broker runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def binary(self) -> Binary:
        """Return the program. Raises `BrokerMissingError`."""
        if self._binary is None:
            self._binary = find_binary()
        return self._binary

    def prepare(self) -> None:
        """Create credentials, choose the port and write the configuration. Raises `BrokerError`."""
        _ = self.binary
        try:
            ensure_credentials(self.files)
            if self._identity is None:
                self._identity = self._choose_identity()
                write_identity(self.files, self._identity)
            self.budget = disk_budget(self.files.budget, self.files.store, self._data_max)
            _, password = read_credentials(self.files.credentials)
            _, control_password = read_credentials(self.files.control)
            _, system_password = read_credentials(self.files.system)
            seed = self.files.callout_seed.read_text(encoding="utf-8").strip()
            configuration = render_configuration(
                self._identity,
                store=self.files.store,
                budget=self.budget,
                password=password,
                control_password=control_password,
                system_password=system_password,
                callout_public_key=public_key(seed),
                tags=self._tags,
                sync_always=self._sync_always,
            )
            write_private(self.files.configuration, configuration)
            self._trim_log()
        except OSError as error:
            raise BrokerError(f"cannot write to {self.files.directory}: {error.strerror or error}") from error

    def _choose_identity(self) -> BrokerIdentity:
        known = read_identity(self.files)
        name = known.server_name if known else f"nvcf-local-{secrets.token_hex(4)}"
        if self._wanted_port is not None:
            if not port_is_free(self._wanted_port):
                raise BrokerUnavailableError(
                    f"port {self._wanted_port} is taken: choose another one for the broker"
                )
            return BrokerIdentity(name, self._wanted_port)
        if known and port_is_free(known.port):
            return known
        if known:
            _log.warning(
                "port %d of the last start is taken by another process, choosing a new one", known.port
            )
        return BrokerIdentity(name, free_port())

    def _trim_log(self) -> None:
        log = self.files.log
        if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.1"))

    @property
    def command(self) -> list[str]:
        """Return the command line, without secrets. Valid after `prepare`."""
        return [str(self.binary.path), "--config", str(self.files.configuration)]

    async def start(self, timeout: float = 15.0) -> None:
        """Start it and wait until it accepts connections.

        Raises `BrokerError`, with the end of its log if it exits.
        """
        if self.running:
            return
        await asyncio.to_thread(self.prepare)
        log = await asyncio.to_thread(self.files.log.open, "ab")
        try:
            # With SIGTERM it closes its files in order when this process is killed.
            self._process = await spawn(self.command, stdout=log, stderr=log, death_signal=signal.SIGTERM)
        finally:
            log.close()
        try:
            await self.wait_ready(timeout)
        except BaseException:
            await self.stop(grace=0)
            raise

    async def wait_ready(self, timeout: float = 15.0) -> None:
        """Wait until this installation's server answers on its port. Raises `BrokerUnavailableError`."""
        if self._identity is None:
            raise BrokerError("the local broker has no address before its first start")
        try:
            async with asyncio.timeout(timeout):
                while await server_name_at(self._identity.port) != self._identity.server_name:
                    if self._process is not None and self._process.returncode is not None:
                        how = describe_exit(self._process.returncode)
                        raise BrokerUnavailableError(
                            f"nats-server ended at its start ({how}): {self.end_of_log()}"
                        )
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise BrokerUnavailableError(
                f"nats-server was not ready after {timeout:g} s, see {self.files.log}: {self.end_of_log()}"
            ) from None

    def end_of_log(self) -> str:
        """Return the last line of its log, for an error message."""
        try:
            with self.files.log.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 4096))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return "no log"
        return lines[-1] if lines else "empty log"

    async def wait(self) -> int:
        """Wait until it ends, and return its exit code. Raises `BrokerError` if it was never started."""
        if self._process is None:
            raise BrokerError("the local broker was not started")
        return await self._process.wait()

    async def stop(self, grace: float = 10.0) -> None:
        """Send SIGTERM and, after `grace` seconds, SIGKILL. All acknowledged messages stay in its store."""
        if self._process is not None:
            await stop_process(self._process, grace)
            self._process = None

    async def kill(self) -> None:
        """Send SIGKILL, as in a crash."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def restart(self, timeout: float = 15.0) -> None:
        """Stop it and start it again, on the same port with the same data."""
        await self.stop()
        await self.start(timeout)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
