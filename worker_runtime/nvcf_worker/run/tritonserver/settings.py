"""Settings of a Triton server and the command line that starts it. No I/O but for free ports."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nvcf_broker.process import free_port
from nvcf_worker.errors import ConfigurationError

PROGRAM = "tritonserver"
LOOPBACK = "127.0.0.1"
SHM_PREFIX = "shm-region-prefix-name"
RESTRICTED = "model-repository,shared-memory,trace,logging"
"""Parts of Triton's gRPC protocol that callers may not use: they change the server for everybody."""


@dataclass(frozen=True)
class ModelChoice:
    """A model that a function serves. version: None for what its version policy says.

    config: the whole model configuration in Triton's JSON, in place of the file in the repository.
    """

    name: str
    version: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class TritonSettings:
    """Where the server listens, and how it is started; without a `command` it runs by itself.

    shm_prefix: how the names of its shared memory begin; None if the user has set that.
    """

    host: str
    http_port: int
    grpc_port: int
    models: tuple[ModelChoice, ...]
    command: tuple[str, ...] = ()
    shm_prefix: str | None = None

    @property
    def url(self) -> str:
        """Return the address of its HTTP server."""
        return (
            f"http://[{self.host}]:{self.http_port}"
            if ":" in self.host
            else f"http://{self.host}:{self.http_port}"
        )


def choices(models: Sequence[str], configs: Sequence[str]) -> tuple[ModelChoice, ...]:
    """Read `NAME[:VERSION]` and `NAME=FILE`. Raises ConfigurationError."""
    found: dict[str, ModelChoice] = {}
    for text in models:
        name, _, version = text.partition(":")
        if not name or (version and not version.isdecimal()):
            raise ConfigurationError(f"--model {text}: NAME or NAME:VERSION expected, with a number")
        if name in found:
            raise ConfigurationError(
                f"--model {text}: {name} is given twice; name it once, with one version or none"
            )
        found[name] = ModelChoice(name, version or None)
    for text in configs:
        name, _, file = text.partition("=")
        if name not in found:
            raise ConfigurationError(f"--model-config {text}: there is no --model {name}")
        found[name] = ModelChoice(name, found[name].version, _config(text, Path(file)))
    return tuple(found.values())


def _config(option: str, file: Path) -> str:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--model-config {option}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"--model-config {option}: a JSON object expected")
    return json.dumps(content)


def started(
    repositories: Sequence[str], models: tuple[ModelChoice, ...], arguments: Sequence[str], *, control: bool
) -> TritonSettings:
    """Return the settings of a server that the worker starts. Raises ConfigurationError.

    arguments: more arguments of tritonserver; ports and addresses in them count. control: whether callers
    may load and unload models and change the server's settings by gRPC.
    """
    if not repositories:
        raise ConfigurationError("no model repository: give --model-repository DIR, or --url of a server")
    for each in repositories:
        # Others are addresses of object stores, which Triton reads itself.
        if "://" not in each and not Path(each).is_dir():
            raise ConfigurationError(f"there is no folder {each}")
    given = options(arguments)
    if given.get("model-control-mode", "explicit") != "explicit":
        raise ConfigurationError("--model-control-mode: the worker loads the models, so it must be explicit")
    ports = {kind: _port(given, kind) for kind in ("http", "grpc", "metrics")}
    host = given.get("http-address", LOOPBACK)
    prefix = None if SHM_PREFIX in " ".join(arguments) else f"nvcf-triton-{secrets.token_hex(6)}-"
    command = [
        PROGRAM,
        *(f"--model-repository={each}" for each in repositories),
        "--model-control-mode=explicit",
        *(f"--{kind}-port={port}" for kind, port in ports.items()),
        *(f"--{kind}-address={LOOPBACK}" for kind in ports if f"{kind}-address" not in given),
        *(() if prefix is None else (f"--backend-config=python,{SHM_PREFIX}={prefix}",)),
        *(() if control else (f"--grpc-restricted-protocol={RESTRICTED}:key={secrets.token_hex(16)}",)),
        *arguments,
    ]
    return TritonSettings(host, ports["http"], ports["grpc"], models, tuple(command), prefix)


def attached(url: str, grpc_port: int | None, models: tuple[ModelChoice, ...]) -> TritonSettings:
    """Return the settings of a server that runs already. Raises ConfigurationError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or 8000
    except ValueError as error:
        raise ConfigurationError(f"--url {url}: {error}") from error
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigurationError(f"--url {url}: http://HOST:PORT expected, of Triton's HTTP server")
    return TritonSettings(parts.hostname, port, grpc_port or 8001, models)


def options(arguments: Sequence[str]) -> dict[str, str]:
    """Return the values of `--name=value` and `--name value`; the last one of a name counts."""
    found: dict[str, str] = {}
    for at, word in enumerate(arguments):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            follows = arguments[at + 1] if at + 1 < len(arguments) else ""
            found[name] = value if equals or follows.startswith("--") else follows
    return found


def _port(given: dict[str, str], kind: str) -> int:
    text = given.get(f"{kind}-port")
    if text is None:
        return free_port(LOOPBACK)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigurationError(f"--{kind}-port is {text!r}; it must be a number from 1 to 65535")
    return int(text)


def load_parameters(choice: ModelChoice) -> dict[str, Any]:
    """Return the body of the request that loads a model."""
    return {} if choice.config is None else {"parameters": {"config": choice.config}}


def with_version(config: dict[str, Any], version: str) -> str:
    """Return a model configuration that serves one version only."""
    return json.dumps({**config, "version_policy": {"specific": {"versions": [int(version)]}}})
