"""Setting a worker's telemetry up, in the worker itself and in its child processes."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping

from nvcf_otel import names
from nvcf_otel.errors import TelemetryError
from nvcf_otel.settings import settings_from
from nvcf_otel.setup import Telemetry, start_telemetry
from nvcf_proto import environment as env
from nvcf_worker.control.config import WorkerConfig
from nvcf_worker.process import logs
from nvcf_worker.telemetry import values
from nvcf_worker.telemetry.figures import Figures
from nvcf_worker.telemetry.metering import metering_from
from nvcf_worker.telemetry.worker import Identity, NoTelemetry, WorkerTelemetry

log = logging.getLogger("nvcf_worker")

ON_HEALTH_PORT = "health"
"""Value of NVCF_METRICS_ADDRESS: `/metrics` at HEALTH_PORT, and no port of its own."""

SHUTDOWN_SECONDS = 3.0


def worker_telemetry(
    config: WorkerConfig, address: str | None, environ: Mapping[str, str] = os.environ
) -> WorkerTelemetry | NoTelemetry:
    """What the environment and `address` (HOST:PORT or `health`) ask for. To be called on the event loop.

    Telemetry that cannot be set up is told in the log, and the worker works without.
    """
    wanted = address or environ.get(env.NVCF_METRICS_ADDRESS, "").strip() or None
    version = {names.FUNCTION_ID: config.function_id, names.FUNCTION_VERSION_ID: config.version_id}
    arguments = {
        "instance_id": config.instance_id,
        "attributes": resource_attributes(config),
        "environ": environ,
        "figure_attributes": version,
    }
    try:
        sdk = start_telemetry(
            "worker",
            metrics_address=None if wanted == ON_HEALTH_PORT else wanted,
            page=bool(wanted) or settings_from(environ).exports,
            **arguments,  # type: ignore[arg-type]
        )
    except TelemetryError as error:
        log.error("%s; the worker goes on without", error)
        sdk = start_telemetry("worker", **arguments)  # type: ignore[arg-type]
    metering = metering_from(config, environ)
    if not sdk.enabled and metering is None:
        return NoTelemetry()
    if sdk.log_handler is not None:
        sdk.log_handler.addFilter(logs.Ids())
    peer = {
        "function_id": config.function_id,
        "function_version_id": config.version_id,
        "nca_id": config.nca_id,
        "instance_id": config.instance_id,
    }
    figures = Figures(version, peer)
    values.listen(_on_loop(lambda value: values.record(value, version)))
    identity = Identity(config.function_id, config.version_id, config.instance_id, config.function_name)
    return WorkerTelemetry(sdk, identity, figures, metering, environ)


def resource_attributes(config: WorkerConfig) -> dict[str, str]:
    """Who the worker is, by OpenTelemetry's conventions for functions and by the platform's own names."""
    return {
        "service.name": config.function_name or "nvcf-worker",
        names.FAAS_NAME: config.function_name or config.function_id,
        names.FAAS_VERSION: config.version_id,
        names.FAAS_INSTANCE: config.instance_id,
        names.FUNCTION_ID: config.function_id,
        names.FUNCTION_VERSION_ID: config.version_id,
        names.FUNCTION_NAME: config.function_name,
        names.INSTANCE_ID: config.instance_id,
        names.CLUSTER: config.zone,
        "cloud.provider": config.backend,
        "host.type": config.instance_type,
        "deployment.environment.name": config.environment,
    }


def _on_loop(record: Callable[[values.Value], None]) -> values.Listener:
    """Histograms are written on the event loop alone; handlers tell values from their threads."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()

    def listener(value: values.Value) -> None:
        if threading.get_ident() == thread:
            record(value)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(record, value)

    return listener


def child_telemetry(environ: Mapping[str, str] = os.environ) -> Telemetry:
    """A child's own exporters: spans, logs and figures of the function. The platform's are its worker's."""
    instance = environ.get(env.INSTANCE_ID, "")
    name = environ.get(env.FUNCTION_NAME, "")
    telemetry = start_telemetry(
        "worker",
        instance_id=f"{instance}/{os.getpid()}",
        attributes={
            "service.name": name or "nvcf-worker",
            names.FAAS_NAME: name or environ.get(env.FUNCTION_ID, ""),
            names.FAAS_VERSION: environ.get(env.FUNCTION_VERSION_ID, ""),
            names.FAAS_INSTANCE: instance,
            names.FUNCTION_ID: environ.get(env.FUNCTION_ID, ""),
            names.FUNCTION_VERSION_ID: environ.get(env.FUNCTION_VERSION_ID, ""),
            names.FUNCTION_NAME: name,
            names.INSTANCE_ID: instance,
        },
        environ=environ,
        own_figures=False,
    )
    if telemetry.log_handler is not None:
        telemetry.log_handler.addFilter(logs.Ids())
    return telemetry
