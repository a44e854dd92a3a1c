"""The local broker, connections to it and key-value mirrors, against the real nats-server."""

import asyncio
import base64
import json
import os
import secrets
import stat
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import nkeys
import psutil
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import Placement, StreamConfig

from nvcf_broker.configuration import public_key
from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.errors import (
    BrokerError,
    BrokerRefusedError,
    BrokerUnavailableError,
)
from nvcf_broker.process import free_port
from nvcf_broker.server import LocalBroker
from tests.support.waiting import eventually


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[LocalBroker]:
    async with LocalBroker(tmp_path / "broker") as running:
        yield running


@pytest.fixture
async def client(broker: LocalBroker) -> AsyncIterator[BrokerClient]:
    connection = await connect_broker(broker.url, broker.credentials_file, name="test")
    yield connection
    await connection.close()


class Callout:
    """A minimal auth callout service: one token is valid and may use `ok.>`."""

    def __init__(self, client: BrokerClient, seed: str) -> None:
        self._client = client
        self._keys = nkeys.from_seed(bytearray(seed.encode()))
        self._issuer = public_key(seed)
        self.asked: list[dict[str, Any]] = []

    async def start(self) -> None:
        await self._client.subscribe("$SYS.REQ.USER.AUTH", queue="gateways", cb=self._answer)
        await self._client.flush()

    def _sign(self, claims: dict[str, Any]) -> str:
        def encode(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

        head = encode(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
        body = encode(json.dumps(claims).encode())
        return f"{head}.{body}.{encode(self._keys.sign(f'{head}.{body}'.encode()))}"

    async def _answer(self, message: Msg) -> None:
        payload = message.data.split(b".")[1]
        question = json.loads(base64.urlsafe_b64decode(payload + b"=="))["nats"]
        self.asked.append(question)
        common = {"iss": self._issuer, "sub": question["user_nkey"], "iat": int(time.time())}
        verdict: dict[str, Any] = {"type": "authorization_response", "version": 2}
        if question["connect_opts"].get("auth_token") == "good":
            rights = {
                "type": "user",
                "version": 2,
                "pub": {"allow": ["ok.>"]},
                "sub": {"allow": ["_INBOX.>"]},
                "subs": -1,
                "data": -1,
                "payload": -1,
            }
            user = {**common, "aud": "NVCF", "name": "worker", "jti": secrets.token_hex(8), "nats": rights}
            verdict["jwt"] = self._sign(user)
        else:
            verdict["error"] = "unknown token"
        answer = {**common, "aud": question["server_id"]["id"], "jti": secrets.token_hex(8), "nats": verdict}
        await message.respond(self._sign(answer).encode())


async def quiet(_: Exception) -> None:
    return None


async def connect_worker(url: str, **options: Any) -> Client:
    return await nats.connect(url, allow_reconnect=False, error_cb=quiet, **options)


async def test_files_are_private_and_no_secret_is_on_the_command_line(broker: LocalBroker) -> None:
    for path in (broker.files.directory, broker.files.store):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (broker.credentials_file, broker.callout_seed_file, broker.files.configuration):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    password = broker.credentials_file.read_text().strip().split(":")[1]
    assert broker.pid is not None
    process = psutil.Process(broker.pid)
    assert password not in " ".join(process.cmdline())
    listening = [c.laddr.ip for c in process.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


async def test_the_callout_decides_about_workers_and_not_about_the_platform(
    broker: LocalBroker, client: BrokerClient
) -> None:
    callout = Callout(client, broker.callout_seed_file.read_text().strip())
    await callout.start()
    worker = await connect_worker(broker.url, token="good", name="worker_V_I")
    await worker.publish("ok.fine", b"")
    await worker.flush()
    with pytest.raises(nats.errors.Error):
        await worker.request("$JS.API.INFO", b"", timeout=0.5)
    await worker.close()
    assert callout.asked[0]["connect_opts"]["name"] == "worker_V_I"
    for options in ({}, {"token": "bad"}, {"user": "platform", "password": "guess"}):
        with pytest.raises(nats.errors.Error):
            await connect_worker(broker.url, **options)


async def test_without_a_callout_service_strangers_are_refused(tmp_path: Path, broker: LocalBroker) -> None:
    for credentials in (None, tmp_path / "wrong"):
        if credentials:
            credentials.write_text("somebody:else\n")
        with pytest.raises(BrokerError):
            await connect_broker(broker.url, credentials, name="stranger", timeout=4)


async def test_what_was_acknowledged_survives_sigkill_and_clients_come_back(
    broker: LocalBroker, client: BrokerClient
) -> None:
    stream = client.jetstream()
    await stream.add_stream(StreamConfig(name="queue", subjects=["queue.>"]))
    body = os.urandom(64 * 1024)
    for number in range(100):
        await stream.publish(f"queue.{number}", body)
    before = broker.url
    reconnected = asyncio.Event()
    client.on_reconnect(reconnected.set)
    await broker.kill()
    await broker.start()
    assert broker.url == before
    await eventually(reconnected.is_set, "the client is connected again")
    info = await stream.stream_info("queue")
    assert info.state.messages == 100
    message = await stream.get_msg("queue", seq=100)
    assert message.data == body


async def test_a_new_object_on_the_same_folder_keeps_port_credentials_and_data(tmp_path: Path) -> None:
    async with LocalBroker(tmp_path / "broker") as first:
        url, secret = first.url, first.credentials_file.read_text()
        connection = await connect_broker(url, first.credentials_file, name="test")
        await connection.jetstream().add_stream(StreamConfig(name="kept", subjects=["kept"]))
        await connection.close()
    async with LocalBroker(tmp_path / "broker") as second:
        assert (second.url, second.credentials_file.read_text()) == (url, secret)
        connection = await connect_broker(url, second.credentials_file, name="test")
        assert (await connection.jetstream().stream_info("kept")).config.subjects == ["kept"]
        await connection.close()


async def test_a_placement_tag_is_accepted_and_kept_whether_the_server_has_it_or_not(
    client: BrokerClient,
) -> None:
    stream = client.jetstream()
    for name, tag in (("here", "aws-region:local"), ("elsewhere", "aws-region:nowhere")):
        config = StreamConfig(name=name, subjects=[name], placement=Placement(tags=[tag]))
        info = await stream.add_stream(config)
        assert info.config.placement is not None
        assert info.config.placement.tags == [tag]


async def test_large_messages_up_to_the_contract_fit(client: BrokerClient) -> None:
    stream = client.jetstream()
    await stream.add_stream(StreamConfig(name="large", subjects=["large"]))
    await stream.publish("large", bytes(6 * 1024 * 1024))
    assert (await stream.stream_info("large")).state.bytes > 6 * 1024 * 1024


async def test_a_taken_port_is_named(tmp_path: Path, broker: LocalBroker) -> None:
    port = int(broker.url.rsplit(":", 1)[1])
    with pytest.raises(BrokerUnavailableError, match=f"port {port} is taken"):
        await LocalBroker(tmp_path / "other", port=port).start()


async def test_a_server_that_cannot_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    local = LocalBroker(tmp_path / "broker")
    local.prepare()
    local.files.store.rmdir()
    local.files.store.write_text("not a folder")
    local.prepare = lambda: None  # type: ignore[method-assign]
    with pytest.raises(BrokerUnavailableError, match="not a directory"):
        await local.start()
    assert not local.running


async def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom nvcf_broker.server import LocalBroker\n"
        "async def main():\n    broker = LocalBroker(Path(sys.argv[1]))\n    await broker.start()\n"
        "    print(broker.pid, flush=True)\n    await asyncio.sleep(600)\nasyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path / "broker"), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(30):
        child = psutil.Process(int(await parent.stdout.readline()))
    parent.kill()
    await parent.wait()
    await eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


async def test_an_unreachable_broker_gives_one_line_that_names_the_remedy() -> None:
    url = f"nats://user:secret@127.0.0.1:{free_port()}"
    with pytest.raises(BrokerUnavailableError) as caught:
        await connect_broker(url, name="test", timeout=0.5)
    text = str(caught.value)
    assert "connection refused" in text
    assert "--nats" in text
    assert "secret" not in text
    assert "\n" not in text


async def test_kinds_of_wrong_credentials_have_different_errors(
    tmp_path: Path, broker: LocalBroker, client: BrokerClient
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("platform:wrong\n")
    callout = Callout(client, broker.callout_seed_file.read_text().strip())
    await callout.start()
    with pytest.raises(BrokerRefusedError, match="refuses these credentials"):
        await connect_broker(broker.url, wrong, name="test", timeout=15)
    with pytest.raises(BrokerError, match="cannot read"):
        await connect_broker(broker.url, tmp_path / "missing", name="test")
    wrong.write_text("no separator")
    with pytest.raises(BrokerError, match="user:password"):
        await connect_broker(broker.url, wrong, name="test")
