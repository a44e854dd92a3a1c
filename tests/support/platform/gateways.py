"""A real broker and real gateway processes, with the management calls that tests need."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from nats.aio.client import Client

from nvcf_broker.configuration import read_credentials
from nvcf_broker.files import write_private
from nvcf_broker.server import LocalBroker
from nvcf_gateway.access.signing_keys import SigningKeys
from nvcf_gateway.access.worker_tokens import WorkerTokens
from nvcf_gateway.secrets.keys import create_sealing_key
from nvcf_proto.ids import new_id
from nvcf_proto.models import ApiKey, Scope
from nvcf_proto.models.keys import api_key_id, hash_api_key, new_api_key
from tests.support.platform.processes import Child, end, python, start
from tests.support.waiting import eventually

ACCOUNT = "account-one"


@dataclass(frozen=True)
class Version:
    """A function version made by a test."""

    function_id: str
    id: str

    @property
    def pexec(self) -> str:
        """Path of its pexec route."""
        return f"/v2/nvcf/pexec/functions/{self.function_id}/versions/{self.id}"

    @property
    def exec(self) -> str:
        """Path of its exec route."""
        return f"/v2/nvcf/exec/functions/{self.function_id}/versions/{self.id}"


@dataclass
class Gateway:
    """One gateway process."""

    child: Child
    url: str
    grpc: str
    id: str
    sessions: str = ""


@dataclass
class Platform:
    """Broker, gateways and keys of one test."""

    directory: Path
    broker: LocalBroker
    session: aiohttp.ClientSession
    keys: dict[str, str] = field(default_factory=dict)
    gateways: list[Gateway] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    cluster_ids: dict[str, str] = field(default_factory=dict)

    @property
    def gateway(self) -> Gateway:
        """The first gateway."""
        return self.gateways[0]

    def authorization(self, key: str = "admin") -> dict[str, str]:
        """Return the header for one of the test's API keys."""
        return {"Authorization": f"Bearer {self.keys[key]}"}

    async def start_gateway(self, *flags: str) -> Gateway:
        """Start one more gateway process on the broker."""
        bootstrap = self.directory / "bootstrap-keys.json"
        sealing = self.directory / "sealing.key"
        command = python(
            "-m", "nvcf_gateway", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0",
            "--nats", self.broker.url, "--nats-credentials", str(self.broker.credentials_file),
            "--signing-key", str(self.directory / "signing.pem"),
            "--callout-seed", str(self.broker.callout_seed_file),
            "--nats-system-credentials", str(self.broker.system_credentials_file),
            "--bootstrap-keys", str(bootstrap),
            *(("--sealing-keys", str(sealing)) if sealing.exists() else ()), *flags,
        )  # fmt: skip
        child = await start(command, log=self.directory / f"gateway-{len(self.children)}.log")
        self.children.append(child)
        ready = json.loads(await child.first_line())
        gateway = Gateway(
            child, f"http://{ready['http']}", ready["grpc"], ready["gatewayId"], ready.get("sessions", "")
        )
        self.gateways.append(gateway)
        return gateway

    async def call(
        self, method: str, path: str, body: Any = None, *, key: str = "admin", expect: int = 200
    ) -> dict[str, Any]:
        """Make a management call with a JSON body."""
        url = self.gateway.url + path
        async with self.session.request(method, url, json=body, headers=self.authorization(key)) as response:
            text = await response.text()
            assert response.status == expect, f"{method} {path}: {response.status} {text}"
            return dict(json.loads(text)) if text else {}

    async def register_cluster(self, name: str, **fields: Any) -> str:
        """Register a cluster once, write its agent's key to `cluster_key(name)`, and return its id.

        Agents need gateways with the control plane's own broker account: `control_flags`.
        """
        if name not in self.cluster_ids:
            made = await self.call(
                "POST", f"/v1/accounts/{ACCOUNT}/clusters", {"clusterName": name, **fields}
            )
            write_private(self.cluster_key(name), made["clusterKey"])
            self.cluster_ids[name] = made["clusterId"]
        return self.cluster_ids[name]

    def cluster_key(self, name: str) -> Path:
        """File with the key of a cluster's agent."""
        return self.directory / f"{name}.key"

    def agent_command(self, cluster: str, data: Path) -> list[str]:
        """Return the command line of the agent of a registered cluster."""
        return python(
            "-m", "nvcf_agent", "--icms", self.gateway.url, "--nats", self.broker.url,
            "--cluster-id", self.cluster_ids[cluster], "--key-file", str(self.cluster_key(cluster)),
            "--data", str(data),
        )  # fmt: skip

    async def create_version(self, name: str = "test-function", **fields: Any) -> Version:
        """Create a function with one version that is not deployed."""
        body = {"name": name, "containerImage": "example/test:1", **fields}
        function = (await self.call("POST", "/v2/nvcf/functions", body))["function"]
        return Version(function["id"], function["versionId"])

    async def deploy(self, version: Version, *, keep_queued: bool = True, **specification: Any) -> None:
        """Deploy a version. Only the test starts instances of it."""
        path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
        body = {"deploymentSpecifications": [specification], "keepQueued": keep_queued}
        await self.call("POST", path, body)

    async def deployed_version(
        self, name: str = "test-function", *, keep_queued: bool = True, **fields: Any
    ) -> Version:
        """Create a version and deploy it."""
        version = await self.create_version(name, **fields)
        await self.deploy(version, keep_queued=keep_queued)
        return version

    async def worker_token(self, version: Version, instance_id: str, *, has_record: bool = False) -> str:
        """Return a first token of an instance that no agent has started, signed with the gateways' key."""
        keys = await asyncio.to_thread(SigningKeys, self.directory / "signing.pem")
        token, _ = WorkerTokens(keys).issue(
            function_id=version.function_id,
            version_id=version.id,
            instance_id=instance_id,
            nca_id=ACCOUNT,
            now=time.time(),
            has_record=has_record,
        )
        return token

    async def start_worker(
        self,
        version: Version,
        file: Path,
        handler: str | None = None,
        *,
        concurrency: int = 1,
        instance_id: str | None = None,
        gateway: Gateway | None = None,
        shared: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start a worker process as an agent does."""
        instance = instance_id or new_id()
        shared = shared or self.directory / f"shared-{instance}"
        shared.mkdir(exist_ok=True)
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "NVCF_WORKER_TOKEN": await self.worker_token(version, instance),
            "NVCF_FQDN_GRPC": (gateway or self.gateway).grpc,
            "NVCF_FQDN_NATS": self.broker.url,
            "INSTANCE_ID": instance,
            "FUNCTION_ID": version.function_id,
            "FUNCTION_VERSION_ID": version.id,
            "FUNCTION_NAME": "test-function",
            "NCA_ID": ACCOUNT,
            "MAX_REQUEST_CONCURRENCY": str(concurrency),
            "HEALTH_PORT": "0",
            "SHARED_CONFIG_DIR": str(shared),
            **(environment or {}),
        }
        target = f"{file}:{handler}" if handler else str(file)
        child = await start(
            python("-m", "nvcf_worker", target),
            log=self.directory / f"worker-{len(self.children)}.log",
            environment=variables,
        )
        self.children.append(child)
        return child

    async def broker_client(self) -> Client:
        """Return a raw broker connection as the platform's own user."""
        user, password = read_credentials(self.broker.credentials_file)
        client = Client()
        servers = self.broker.url.split(",")
        await client.connect(servers, user=user, password=password, max_reconnect_attempts=-1)
        return client

    async def queue_is_empty(self, version: Version, region: str = "local") -> None:
        """Wait until the version's stream has no message."""
        client = await self.broker_client()

        async def empty() -> bool:
            return await messages_in(client, f"rq_{region}_{version.id}") == 0

        try:
            await eventually(empty, f"the queue of {version.id} in {region} is empty")
        finally:
            await client.close()


async def messages_in(client: Client, stream: str) -> int:
    """Return the number of messages in a stream."""
    info = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=30)
    return int(json.loads(info.data)["state"]["messages"])


def control_flags(broker: LocalBroker) -> tuple[str, str]:
    """Return the flags of a gateway or autoscaler that uses the control plane's own broker account."""
    return "--nats-control-credentials", str(broker.control_credentials_file)


@contextlib.asynccontextmanager
async def running_platform(
    directory: Path,
    *,
    gateways: int = 1,
    flags: tuple[str, ...] = (),
    broker: LocalBroker | None = None,
) -> AsyncIterator[Platform]:
    """Run gateways, and a broker unless one is given, in `directory`. They are killed at the end."""
    broker = broker or LocalBroker(directory / "broker")
    timeout = aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        platform = Platform(directory, broker, session)
        _write_keys(platform)
        create_sealing_key(directory / "sealing.key")
        try:
            await broker.start()
            for _ in range(gateways):
                await platform.start_gateway(*flags)
            yield platform
        finally:
            for child in platform.children:
                await end(child)
            await broker.stop(grace=0)


def _write_keys(platform: Platform) -> None:
    scopes: dict[str, tuple[str, tuple[Scope, ...]]] = {
        "admin": (ACCOUNT, (Scope.ADMIN, Scope.OPERATOR)),
        "account-admin": (ACCOUNT, (Scope.ADMIN,)),
        "agent": (ACCOUNT, (Scope.AGENT,)),
        "invoke": (ACCOUNT, (Scope.INVOKE,)),
        "list": (ACCOUNT, (Scope.LIST,)),
        "foreign": ("account-two", (Scope.ADMIN,)),
    }
    records = []
    for name, (account, granted) in scopes.items():
        key = platform.keys[name] = new_api_key()
        records.append(ApiKey(api_key_id(key), hash_api_key(key), account, granted, time.time()).to_dict())
    path = platform.directory / "bootstrap-keys.json"
    path.write_text(json.dumps(records))
    path.chmod(0o600)


__all__ = ["ACCOUNT", "Gateway", "Platform", "Version", "eventually", "running_platform"]
