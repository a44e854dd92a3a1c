"""Settings of an LLM engine and the command line that starts it. No I/O but for a free port."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from nvcf_broker.process import free_port
from nvcf_worker.control.config import LOOPBACK
from nvcf_worker.errors import ConfigurationError
from nvcf_worker.run.llm.engines import ENGINES, Engine, engine_of, options
from nvcf_worker.run.sidecar.settings import PORT_PLACE


@dataclass(frozen=True)
class EngineSettings:
    """Where the engine listens, and how it is started; without a `command` it runs by itself.

    models: names that the engine has to serve; none: whatever it serves.
    """

    engine: Engine
    host: str
    port: int
    models: tuple[str, ...]
    command: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Return the address of its HTTP server."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def settings(
    url: str | None, command: Sequence[str], engine: str | None, models: Sequence[str]
) -> EngineSettings:
    """Return the settings of an engine at `url`, or of one to start. Raises ConfigurationError."""
    if engine is not None and engine not in ENGINES:
        raise ConfigurationError(f"--engine {engine}: one of {', '.join(ENGINES)} expected")
    if (url is None) == (not command):
        raise ConfigurationError(
            "give either --engine-url http://HOST:PORT of an engine that runs, or the command that starts "
            "one after '--', e.g. nvcf-worker llm -- vllm serve MODEL"
        )
    kind = ENGINES[engine] if engine is not None else engine_of(command)
    if url is None:
        return _started(command, kind, tuple(models))
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or kind.port
    except ValueError as error:
        raise ConfigurationError(f"--engine-url {url}: {error}") from error
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        # The routes that callers use begin with /v1 themselves.
        raise ConfigurationError(f"--engine-url {url}: http://HOST:PORT expected, without a path")
    return EngineSettings(kind, parts.hostname, port, tuple(models))


def _started(command: Sequence[str], engine: Engine, models: tuple[str, ...]) -> EngineSettings:
    text = options(command).get("port")
    if any(PORT_PLACE in word for word in command):
        port = free_port(LOOPBACK)
        return EngineSettings(
            engine, LOOPBACK, port, models, tuple(word.replace(PORT_PLACE, str(port)) for word in command)
        )
    if text is not None:
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise ConfigurationError(f"--port {text} of {command[0]}: a number from 1 to 65535 expected")
        return EngineSettings(engine, LOOPBACK, int(text), models, tuple(command))
    if not engine.takes_port or not engine.programs:
        return EngineSettings(engine, LOOPBACK, engine.port, models, tuple(command))
    port = free_port(LOOPBACK)
    return EngineSettings(engine, LOOPBACK, port, models, (*command, "--port", str(port)))
