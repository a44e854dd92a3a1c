"""TLS of a worker; its HTTP and gRPC sides are in tests/contract/gateway/test_tls.py."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from nvcf_worker.control.config import GrpcEndpoint, WorkerConfig
from nvcf_worker.control.tls import ROOT_CA_FILE, client_context, grpc_roots
from nvcf_worker.errors import ConfigurationError, StartupError
from nvcf_worker.queue.connect import open_connection
from tests.support.http.authority import Authority
from tests.support.platform.nats_server import NatsServer


class TlsServer(NatsServer):
    def config(self) -> dict[str, object]:
        files = {
            "cert_file": str(self.directory / "broker.crt"),
            "key_file": str(self.directory / "broker.key"),
        }
        return {**super().config(), "tls": files}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls_broker(tmp_path: Path, authority: Authority) -> Iterator[NatsServer]:
    server = TlsServer(tmp_path / "nats")
    server.directory.mkdir()
    authority.issue(
        server.directory / "broker.crt",
        server.directory / "broker.key",
        ec.generate_private_key(ec.SECP256R1()),
    )
    server.start()
    yield server
    server.kill()


async def connected(broker: NatsServer, directory: Path, limit: float) -> bool:
    """Whether a worker gets to the broker by `tls://`."""
    config = WorkerConfig(
        worker_token="token",
        grpc=GrpcEndpoint("127.0.0.1:1", tls=False),
        nats_servers=(broker.address.replace("nats://", "tls://"),),
        instance_id="instance-1",
        function_id=str(uuid.uuid4()),
        version_id=str(uuid.uuid4()),
        shared_dir=directory,
    )

    async def nothing() -> None:
        return None

    connection = await open_connection(
        config,
        lambda: "token",
        on_reconnect=nothing,
        on_closed=nothing,
        on_lame_duck=nothing,
        on_denied=lambda subject: None,
        limit=limit,
        counts=Counter(),
    )
    try:
        return connection.is_connected
    finally:
        await connection.close()


async def test_a_broker_of_a_private_authority(
    tls_broker: NatsServer, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartupError):
        await connected(tls_broker, tmp_path, 2.0)
    monkeypatch.setenv(ROOT_CA_FILE, str(authority.file))
    assert await connected(tls_broker, tmp_path, 20.0)


def test_a_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("no certificate")
    for file in (tmp_path / "missing.pem", nonsense):
        with pytest.raises(ConfigurationError, match="must be a file of certificates"):
            client_context({ROOT_CA_FILE: str(file)})
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        grpc_roots({"SSL_CERT_FILE": str(tmp_path / "missing.pem")})


def test_which_file_grpc_takes(tmp_path: Path) -> None:
    ours, system = tmp_path / "ours.pem", tmp_path / "system.pem"
    ours.write_bytes(b"ours")
    system.write_bytes(b"system")
    own = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
    assert grpc_roots({}) is None
    assert grpc_roots({"SSL_CERT_FILE": str(system)}) == b"system"
    assert grpc_roots({"SSL_CERT_FILE": str(system), own: "/its/own"}) is None
    every = {"SSL_CERT_FILE": str(system), own: "/its/own", ROOT_CA_FILE: str(ours)}
    assert grpc_roots(every) == b"ours"
