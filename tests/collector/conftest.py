"""A real OpenTelemetry Collector, where there is one: `make collector` builds it; nothing else needs it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from nvcf_broker.process import free_port
from nvcf_otel.byoo import Placement, collector_text
from nvcf_otel.byoo.providers import as_referenced, referenced_files
from nvcf_proto.models import TelemetryEndpoint, TelemetryType

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0


@pytest.fixture(scope="session")
def program() -> Path:
    """The collector's executable."""
    path = Path(os.environ.get("NVCF_COLLECTOR", ROOT / ".collector" / "nvcf-otelcol"))
    if not path.exists():
        pytest.skip("no collector here: make collector builds one, or NVCF_COLLECTOR says where it is")
    return path


class Collector:
    """One collector process on rendered configuration, with its secrets and queues in a folder."""

    def __init__(
        self,
        program: Path,
        folder: Path,
        endpoints: Mapping[TelemetryType, TelemetryEndpoint],
        secrets: Mapping[str, str],
        scrape: tuple[str, ...] = (),
    ) -> None:
        self._program = program
        self.folder = folder
        (folder / "secrets").mkdir(exist_ok=True)
        referenced = frozenset[str]().union(*(referenced_files(each) for each in endpoints.values()))
        for name, value in secrets.items():
            text = as_referenced(value) if name in referenced else value.strip()
            (folder / "secrets" / name).write_text(text)
        self.placement = Placement(
            grpc_port=free_port(),
            http_port=free_port(),
            health_port=free_port(),
            metrics_port=free_port(),
            secrets=str(folder / "secrets"),
            storage=str(folder / "queue"),
            scrape=scrape,
            scrape_seconds=1,
            resource={"nvcf.function.id": "f", "nvcf.odd": "costs $5 ${env:HOME} $$"},
        )
        self.file = folder / "collector.yaml"
        self.file.write_text(collector_text(endpoints, self.placement))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it takes OTLP over gRPC."""
        return f"http://127.0.0.1:{self.placement.grpc_port}"

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._program), "--config", str(self.file)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._takes_connections():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.folder / "log").read_text()[-4000:])
            time.sleep(0.05)

    def _takes_connections(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.placement.grpc_port), 1),
        ):
            return True
        return False

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


Start = Callable[..., Collector]


@pytest.fixture
def collect(program: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a collector; all are killed at the end."""
    started: list[Collector] = []

    def start(
        endpoints: Mapping[TelemetryType, TelemetryEndpoint],
        secrets: Mapping[str, str] | None = None,
        scrape: tuple[str, ...] = (),
    ) -> Collector:
        folder = tmp_path / f"collector-{len(started)}"
        folder.mkdir()
        collector = Collector(program, folder, endpoints, secrets or {}, scrape)
        started.append(collector)
        collector.start()
        return collector

    yield start
    for collector in started:
        collector.kill()
