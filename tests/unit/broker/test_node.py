"""The configuration of a broker in a container, read by the real nats-server."""

import asyncio
import secrets
import subprocess
from pathlib import Path

import pytest

from nvcf_broker.binary import find_binary
from nvcf_broker.configuration import BrokerFiles, ensure_credentials
from nvcf_broker.connection import connect_broker
from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import JetStream
from nvcf_broker.node import main
from nvcf_broker.process import free_port, spawn, stop_process
from nvcf_broker.server import server_name_at

EVERY = "0.0.0.0"  # noqa: S104


def write(folder: Path, *options: str) -> Path:
    logins, output = folder / "secrets", folder / "nats.conf"
    ensure_credentials(BrokerFiles(logins))
    common = ["--secrets", str(logins), "--output", str(output), "--store", str(folder / "store")]
    assert main([*common, "--data-max", "1024", "--name", "nvcf-nats-0", *options]) == 0
    return output


def check(configuration: Path) -> None:
    command = [str(find_binary().path), "-t", "--config", str(configuration)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0, ran.stderr


def test_one_node(tmp_path: Path) -> None:
    configuration = write(tmp_path, "--tag", "aws-region:local", "--pid-file", "/run/nats/nats.pid")
    check(configuration)
    text = configuration.read_text()
    assert 'listen: "0.0.0.0:4222"' in text
    assert "cluster:" not in text
    assert configuration.stat().st_mode & 0o077 == 0


def test_three_nodes_share_their_accounts_limits(tmp_path: Path) -> None:
    one = write(tmp_path).read_text()
    three = write(tmp_path, "--nodes", "nats-0.nats,nats-1.nats,nats-2.nats")
    check(three)
    text = three.read_text()
    assert text.count(":6222") == 4
    # What an account may store is counted over all nodes, what a node may store is its own.
    limits = [line for line in one.splitlines() if "max_file:" in line]
    for line in limits:
        size = int(line.split("max_file:")[1].split("}")[0])
        assert f"max_file: {3 * size} " in text
    assert "max_file_store: 1073741824" in text


def test_tls(tmp_path: Path) -> None:
    text = write(tmp_path, "--tls-cert", "/tls/tls.crt", "--tls-key", "/tls/tls.key").read_text()
    assert '"cert_file": "/tls/tls.crt"' in text


@pytest.mark.parametrize("missing", ["callout.seed", "platform.credentials"])
def test_missing_secrets_are_named(missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    (tmp_path / "secrets" / missing).unlink()
    options = ["--secrets", str(tmp_path / "secrets"), "--output", str(tmp_path / "out"), "--store", "/s"]
    assert main([*options, "--data-max", "1024", "--name", "n"]) == 1
    assert missing in capsys.readouterr().err


async def test_a_node_serves(tmp_path: Path) -> None:
    """The same text, but for its ports, which are taken in parallel tests."""
    configuration = write(tmp_path, "--pid-file", str(tmp_path / "nats.pid"))
    port, monitor = free_port(), free_port()
    text = configuration.read_text().replace("0.0.0.0:4222", f"127.0.0.1:{port}")
    configuration.write_text(text.replace("http: 8222", f'http: "127.0.0.1:{monitor}"'))
    server = await spawn(
        [str(find_binary().path), "--config", str(configuration)], stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(30):
            while await server_name_at(port) != "nvcf-nats-0":
                assert server.returncode is None
                await asyncio.sleep(0.02)
    finally:
        await stop_process(server, 0)


async def test_three_nodes_find_each_other_with_their_password(tmp_path: Path) -> None:
    """Each node has a loopback address of its own, so the ports are those of the pods."""
    part = secrets.randbelow(250) + 1
    hosts = [f"127.{part}.{secrets.randbelow(250)}.{number}" for number in (1, 2, 3)]
    servers = []
    try:
        for number, host in enumerate(hosts):
            folder = tmp_path / host
            configuration = write(
                tmp_path, "--nodes", ",".join(hosts), "--name", f"n{number}", "--store", str(folder)
            )
            text = configuration.read_text().replace(EVERY, host)
            text = text.replace("http: 8222", f'http: "{host}:8222"')
            own = tmp_path / f"{host}.conf"
            own.write_text(text)
            command = [str(find_binary().path), "--config", str(own)]
            servers.append(await spawn(command, stderr=asyncio.subprocess.DEVNULL))
        login = BrokerFiles(tmp_path / "secrets").credentials
        client = await connect_broker(f"nats://{hosts[0]}:4222", login, name="test", timeout=30)
        async with asyncio.timeout(60):
            while True:
                try:
                    await JetStream(client, 5).create_stream(
                        {"name": "s", "subjects": ["s"], "num_replicas": 3, "max_bytes": 1024}
                    )
                    break
                except BrokerError:
                    # There is no leader yet.
                    await asyncio.sleep(0.1)
        info = await JetStream(client, 5).stream_info("s")
        assert info is not None
        assert info.config["num_replicas"] == 3
        await client.close()
    finally:
        for server in servers:
            await stop_process(server, 0)
