"""Set up telemetry in a worker and in its child processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping

from nvcf_otel import names
from nvcf_otel.errors import TelemetryError
from nvcf_otel.settings import settings_from
from nvcf_otel.setup import Telemetry, start_telemetry
from nvcf_proto import environment as env
from nvcf_worker.control.config import WorkerConfig
from nvcf_worker.process import logs
from nvcf_worker.telemetry import measurements
from nvcf_worker.telemetry.measurements import Measurement
from nvcf_worker.telemetry.metering import metering_from
from nvcf_worker.telemetry.metrics import WorkerMetrics
from nvcf_worker.telemetry.worker import NoTelemetry, WorkerTelemetry

log = logging.getLogger("nvcf_worker")

ON_HEALTH_PORT = "health"
"""Value of NVCF_METRICS_ADDRESS: `/metrics` on HEALTH_PORT, without a port of its own."""

SHUTDOWN_SECONDS = 3.0

_current: NoTelemetry = NoTelemetry()


def current() -> NoTelemetry:
    """Return the telemetry of the worker that runs in this process."""
    return _current


@contextlib.asynccontextmanager
async def worker_telemetry(config: WorkerConfig, address: str | None) -> AsyncIterator[NoTelemetry]:
    """Set up the worker's telemetry; at the end, send what is still queued.

    address: of the metrics, HOST:PORT or `health`; default NVCF_METRICS_ADDRESS.
    """
    global _current  # there is one worker per process
    telemetry = _current = start_worker_telemetry(config, address)
    try:
        yield telemetry
    finally:
        _current = NoTelemetry()
        try:
            # It waits for a thread, and all of them may be taken by jobs of the function that hang.
            async with asyncio.timeout(SHUTDOWN_SECONDS + 1):
                await asyncio.to_thread(telemetry.shutdown, SHUTDOWN_SECONDS)
        except TimeoutError:
            log.warning("the last telemetry was not sent within %g s", SHUTDOWN_SECONDS + 1)


def start_worker_telemetry(
    config: WorkerConfig, address: str | None, environ: Mapping[str, str] = os.environ
) -> NoTelemetry:
    """Start the telemetry that `environ` and `address` ask for. Called on the event loop.

    If telemetry cannot be set up, the error is logged and the worker runs without it.
    """
    wanted = address or environ.get(env.NVCF_METRICS_ADDRESS, "").strip() or None
    version = {names.FUNCTION_ID: config.function_id, names.FUNCTION_VERSION_ID: config.version_id}
    arguments = {
        "instance_id": config.instance_id,
        "attributes": resource_attributes(config),
        "environ": environ,
        "metric_attributes": version,
    }
    try:
        sdk = start_telemetry(
            "worker",
            metrics_address=None if wanted == ON_HEALTH_PORT else wanted,
            page=bool(wanted) or settings_from(environ).exports,
            **arguments,  # type: ignore[arg-type]
        )
    except TelemetryError as error:
        log.error("%s; the worker runs without telemetry", error)
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
    measurements.listen(_on_loop(lambda measurement: measurements.record(measurement, version)))
    return WorkerTelemetry(sdk, config, WorkerMetrics(version, peer), metering, environ)


def resource_attributes(config: WorkerConfig) -> dict[str, str]:
    """Return the worker's resource attributes, by OpenTelemetry's conventions and by the platform's own."""
    return {
        **_function_attributes(
            config.function_name, config.function_id, config.version_id, config.instance_id
        ),
        names.CLUSTER: config.zone,
        "cloud.provider": config.backend,
        "host.type": config.instance_type,
        "deployment.environment.name": config.environment,
    }


def _function_attributes(name: str, function_id: str, version_id: str, instance_id: str) -> dict[str, str]:
    return {
        "service.name": name or "nvcf-worker",
        names.FAAS_NAME: name or function_id,
        names.FAAS_VERSION: version_id,
        names.FAAS_INSTANCE: instance_id,
        names.FUNCTION_ID: function_id,
        names.FUNCTION_VERSION_ID: version_id,
        names.FUNCTION_NAME: name,
        names.INSTANCE_ID: instance_id,
    }


def _on_loop(record: Callable[[Measurement], None]) -> measurements.Listener:
    """Return a listener for any thread that records on the event loop, where histograms are written."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()

    def listener(measurement: Measurement) -> None:
        if threading.get_ident() == thread:
            record(measurement)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(record, measurement)

    return listener


def child_telemetry(environ: Mapping[str, str] = os.environ) -> Telemetry:
    """Start the exporters of a child process: for spans, logs and metrics of the function itself.

    The metrics of the platform are exported by the worker.
    """
    variables = (env.FUNCTION_NAME, env.FUNCTION_ID, env.FUNCTION_VERSION_ID, env.INSTANCE_ID)
    telemetry = start_telemetry(
        "worker",
        instance_id=f"{environ.get(env.INSTANCE_ID, '')}/{os.getpid()}",
        attributes=_function_attributes(*(environ.get(variable, "") for variable in variables)),
        environ=environ,
        process_metrics=False,
    )
    if telemetry.log_handler is not None:
        telemetry.log_handler.addFilter(logs.Ids())
    return telemetry
