"""Secrets of instances: fetched from the gateway, written for the instance, and followed while it lives.

They are read as from NVIDIA's secret store (protocol.md, section 6.9). All instances of a version share one
conditional request every `FOLLOW_SECONDS`, which is answered with 304 while nothing has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote

import aiohttp

from nvcf_agent.backends.environment import InstanceOf
from nvcf_agent.errors import IdentityError, StartError
from nvcf_agent.icms.client import IcmsClient
from nvcf_proto.secrets import (
    ESS_NAMESPACE,
    ESS_NAMESPACE_HEADER,
    ESS_PREFIX,
    ESS_TOKEN_HEADER,
)

_log = logging.getLogger(__name__)

FOLLOW_SECONDS = 2.0
TIMEOUT_SECONDS = 10.0
_RENEW_BEFORE_SECONDS = 60.0
_CREDENTIALS_PATH = "/v2/nvcf/agents/secret-credentials"


class SecretsError(StartError):
    """The gateway did not hand out an instance's secrets."""


@dataclass(frozen=True)
class SecretToken:
    """A token that reads the secrets at `paths` until `expires_at` (Unix seconds)."""

    text: str = field(repr=False)
    expires_at: float
    paths: tuple[str, ...]
    instance_id: str


class SecretSource(Protocol):
    """Hands out tokens for secrets, and secrets for tokens. Its methods raise `SecretsError`."""

    async def token(self, instance: InstanceOf) -> SecretToken | None:
        """Return a token for the secrets of an instance; None if its control plane has no secrets at all."""
        ...

    async def read(self, token: SecretToken, path: str, tag: str | None) -> tuple[str, dict[str, Any]] | None:
        """Return tag and secrets of a path; None while `tag` is theirs."""
        ...


class SecretSink(Protocol):
    """Where secrets of instances are written. Its methods raise `StartError` and OSError."""

    async def open(self) -> None:
        """Make it ready, and remove what earlier agents have left."""
        ...

    async def close(self) -> None:
        """Remove what does not outlive the agent."""
        ...

    async def make(self, instance_id: str, home: Path | None, uid: int | None) -> Path:
        """Return the folder of a new instance, as its user `uid` will see it. `home` is its own folder."""
        ...

    async def write(self, instance_id: str, values: Mapping[str, Any]) -> None:
        """Replace the secrets of an instance. One that is gone is no error."""
        ...

    async def remove(self, instance_id: str) -> None:
        """Remove the secrets of an instance, if it has any."""
        ...


class GatewaySecrets:
    """Secrets over the control plane's HTTP API, for the agent's own cluster."""

    def __init__(self, session: aiohttp.ClientSession, icms: IcmsClient) -> None:
        self._session = session
        self._icms = icms

    async def token(self, instance: InstanceOf) -> SecretToken | None:
        if not instance.has_secret_service:
            return None
        body = {"instanceId": instance.instance_id}
        if instance.is_task:
            body["taskId"] = instance.function_id
        else:
            body |= {"functionId": instance.function_id, "functionVersionId": instance.version_id}
        try:
            headers = await self._icms.headers()
        except IdentityError as error:
            raise SecretsError(str(error)) from error
        status, _, answer = await self._call("POST", _CREDENTIALS_PATH, headers, body)
        try:
            if status != HTTPStatus.OK:
                raise SecretsError(f"the gateway gave no token for secrets (HTTP {status})")
            expires = datetime.fromisoformat(answer["expiration"]).timestamp()
            paths = tuple(answer["secretPaths"])
            return SecretToken(str(answer["token"]), expires, paths, instance.instance_id)
        except (KeyError, TypeError, ValueError) as error:
            raise SecretsError("the gateway's token for secrets is not readable") from error

    async def read(self, token: SecretToken, path: str, tag: str | None) -> tuple[str, dict[str, Any]] | None:
        headers = {ESS_TOKEN_HEADER: token.text, ESS_NAMESPACE_HEADER: ESS_NAMESPACE}
        if tag is not None:
            headers["If-None-Match"] = tag
        status, new, answer = await self._call("GET", ESS_PREFIX + quote(path), headers)
        if status == HTTPStatus.NOT_MODIFIED:
            return None
        outer = answer.get("data")
        values = outer.get("data") if isinstance(outer, dict) else None
        if status != HTTPStatus.OK or not isinstance(values, dict):
            raise SecretsError(f"the gateway did not hand out the secrets of {path} (HTTP {status})")
        return new, values

    async def _call(
        self, method: str, path: str, headers: dict[str, str], body: dict[str, str] | None = None
    ) -> tuple[int, str, dict[str, Any]]:
        """Return status, entity tag and JSON object of a response; an empty object if it is no object."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        url = self._icms.url + path
        try:
            async with self._session.request(
                method, url, headers=headers, json=body, timeout=timeout, allow_redirects=False
            ) as response:
                text = await response.read()
                answer: Any = None
                with contextlib.suppress(ValueError):
                    answer = await response.json(content_type=None) if text else None
                tag = response.headers.get("ETag", "")
                return response.status, tag, answer if isinstance(answer, dict) else {}
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise SecretsError(f"the gateway did not hand out secrets: {reason}") from error


@dataclass
class _Version:
    """What is known of a version's secrets, and the instances that have them."""

    path: str
    instances: dict[str, InstanceOf] = field(default_factory=dict)
    placed: set[str] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    token: SecretToken | None = None
    tag: str | None = None
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    failed: bool = False
    stale: bool = False


class InstanceSecrets:
    """The secrets of all instances of this agent. Use it as a context manager."""

    def __init__(
        self, source: SecretSource, sink: SecretSink, clock: Callable[[], float] = time.time
    ) -> None:
        self._source = source
        self._sink = sink
        self._clock = clock
        self._versions: dict[str, _Version] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._sink.open()
        self._task = asyncio.create_task(self._follow(), name="secrets")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._sink.close()

    async def begin(self, instance: InstanceOf, home: Path | None = None, uid: int | None = None) -> Path:
        """Write the secrets of a new instance, for its user `uid`; return their folder.

        `home` is the instance's folder. While the gateway is away, those that are known count. Raises
        `SecretsError` and OSError.
        """
        instance_id = instance.instance_id
        version = self._version(instance)
        folder = await self._sink.make(instance_id, home, uid)
        async with version.lock:
            try:
                await self._update(version)
            except SecretsError as error:
                # A process that starts again must not wait for a gateway that is away.
                if version.tag is None:
                    raise
                version.token = None
                _log.warning("instance %s starts with the secrets known so far: %s", instance_id, error)
            await self._sink.write(instance_id, version.values)
            version.placed.add(instance_id)
        return folder

    async def adopt(self, instance: InstanceOf) -> None:
        """Follow the secrets of an instance that an earlier agent has started; they are read soon."""
        version = self._version(instance)
        version.placed.add(instance.instance_id)
        version.stale = True

    def _version(self, instance: InstanceOf) -> _Version:
        path = instance.secrets_path
        version = self._versions.setdefault(instance.version_id, _Version(path))
        version.instances[instance.instance_id] = instance
        return version

    async def end(self, instance_id: str) -> None:
        """Remove the secrets of an instance that has ended, or that did not start."""
        # Without the lock: the end of an instance must not wait for the gateway.
        for version_id, version in list(self._versions.items()):
            if version.instances.pop(instance_id, None) is None:
                continue
            version.placed.discard(instance_id)
            if version.token is not None and version.token.instance_id == instance_id:
                version.token = None
            if not version.instances:
                del self._versions[version_id]
        await self._sink.remove(instance_id)

    async def of_telemetries(self, instance: InstanceOf) -> dict[str, Any]:
        """Return the secrets of the telemetry endpoints of a new instance, by name. Raises `SecretsError`."""
        token = await self._source.token(instance)
        own = instance.secrets_path
        found: dict[str, Any] = {}
        for path in token.paths if token is not None else ():
            if path != own and token is not None:
                answer = await self._source.read(token, path, None)
                found |= answer[1] if answer is not None else {}
        return found

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311
            async with asyncio.TaskGroup() as group:
                for version in list(self._versions.values()):
                    group.create_task(self._refresh(version))

    async def _refresh(self, version: _Version) -> None:
        """Write the secrets of a version anew if they have changed."""
        async with version.lock:
            if not version.placed:
                return
            try:
                if await self._update(version) or (version.stale and version.token is not None):
                    for instance_id in list(version.placed):
                        await self._sink.write(instance_id, version.values)
                    version.stale = False
                    _log.info("new secrets of %s: %s", version.path, ", ".join(version.values) or "none")
                version.failed = False
            except (StartError, OSError) as error:
                # Instances keep what they have. The token may be that of an instance that has ended.
                version.token = None
                if not version.failed:
                    _log.warning("changed secrets of %s would not be seen now: %s", version.path, error)
                version.failed = True
            except Exception:  # noqa: BLE001 # one version's fault must not end the others' changes
                version.token = None
                _log.exception("changed secrets of %s were not read", version.path)

    async def _update(self, version: _Version) -> bool:
        """Read the secrets of a version if they have changed; return whether they have."""
        if version.token is None or version.token.expires_at - self._clock() < _RENEW_BEFORE_SECONDS:
            instances = list(version.instances.values())
            version.token = await self._source.token(random.choice(instances)) if instances else None  # noqa: S311
        if version.token is None:
            return False
        answer = await self._source.read(version.token, version.path, version.tag)
        if answer is None:
            return False
        changed = answer[1] != version.values
        version.tag, version.values = answer
        return changed
