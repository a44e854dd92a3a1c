"""The OpenTelemetry Collector beside an instance: its configuration file and its process."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from nvcf_agent.backends.environment import CollectorOrder
from nvcf_broker.errors import ProcessError
from nvcf_broker.files import private_directory, write_private
from nvcf_broker.process import describe_exit, spawn, stop_process
from nvcf_otel.byoo import Placement, collector_text, secret_files
from nvcf_otel.byoo.providers import as_referenced, referenced_files
from nvcf_proto import environment as names

_log = logging.getLogger(__name__)

# Certificate authorities that the machine trusts.
_INHERITED = ("SSL_CERT_FILE", "SSL_CERT_DIR")
FILE = "collector.yaml"
LOG = "collector.log"
# Time to send or store what it still holds.
GRACE_SECONDS = 5.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0


def write_configuration(order: CollectorOrder, home: Path, port: Callable[[], int]) -> Placement:
    """Write `collector.yaml` and copies of its secrets into an instance's folder. Raises OSError.

    `port` returns a free port.
    """
    storage = private_directory(home / "collector")
    secrets = private_directory(home / "secrets")
    for endpoint in order.endpoints.values():
        referenced = referenced_files(endpoint)
        for name in secret_files(endpoint):
            text = order.secrets.read(name)
            write_private(secrets / name, as_referenced(text) if name in referenced else text.strip())
    placement = Placement(
        grpc_port=port(),
        http_port=port(),
        health_port=port(),
        metrics_port=port(),
        secrets=str(secrets),
        storage=str(storage),
        resource=order.resource,
    )
    write_private(home / FILE, collector_text(order.endpoints, placement))
    return placement


async def run_collector(program: Path, home: Path) -> None:
    """Keep a collector running on an instance's configuration until cancelled."""
    pause = _FIRST_PAUSE
    # The variable marks the process as this instance's, so that the next agent finds it as an orphan.
    environment = {
        "PATH": "/usr/bin:/bin",
        names.SHARED_CONFIG_DIR: str(home / "shared"),
        **{name: os.environ[name] for name in _INHERITED if name in os.environ},
    }
    while True:
        try:
            code = await _run_once([str(program), "--config", str(home / FILE)], environment, home)
            _log.warning("the collector of %s ended: %s; see %s", home.name, describe_exit(code), home / LOG)
        except (ProcessError, OSError) as error:
            _log.warning("the collector of %s does not start: %s", home.name, error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _run_once(command: list[str], environment: dict[str, str], home: Path) -> int:
    log = await asyncio.to_thread((home / LOG).open, "wb")
    try:
        process = await spawn(command, env=environment, cwd=home, stdout=log, stderr=log)
    finally:
        log.close()
    try:
        return await process.wait()
    finally:
        await asyncio.shield(stop_process(process, GRACE_SECONDS))
