"""One running llama-server on a free port."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from nvcf_broker.process import free_port
from tests.llm.installed import engine
from tests.support.platform.processes import Child, child_process
from tests.support.waiting import eventually

START = 60.0
"""Seconds for its start on a busy machine; on a quiet one it takes a fifth of one."""
SLOTS = 4
MODEL = "tiny"


@dataclass(frozen=True)
class LlamaServer:
    """A running server. `log` is what it has written."""

    child: Child
    url: str

    async def get(self, path: str) -> Any:
        """GET a path and return the JSON of its answer."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def busy_slots(self) -> int:
        """How many of its slots generate tokens now."""
        return sum(bool(slot["is_processing"]) for slot in await self.get("/slots"))


def command(port: int | str, *options: str, slots: int = SLOTS, alias: str = MODEL) -> list[str]:
    """Return the command line of a server; `llama-server` has to be on PATH (`with_engine`)."""
    return [
        *("llama-server", "-m", str(engine().model), "--alias", alias, "--host", "127.0.0.1"),
        *("--port", str(port), "--ctx-size", str(2048 * slots), "--parallel", str(slots)),
        *("--threads", "1", "--threads-http", "4", "-ngl", "0", "--metrics", "--slots", "--no-ui"),
        *("--offline", "--jinja", *options),
    ]


def with_engine(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which `llama-server` is on PATH, as in an engine's image."""
    found = dict(os.environ if environment is None else environment)
    return {**found, "PATH": f"{engine().program.parent}:{found.get('PATH', os.defpath)}"}


@contextlib.asynccontextmanager
async def running_engine(
    log: Path, *options: str, slots: int = SLOTS, port: int | None = None
) -> AsyncIterator[LlamaServer]:
    """Run a server for the length of a context. options: more arguments of llama-server."""
    port = port or free_port()
    line = command(port, *options, slots=slots)
    async with child_process(line, log=log, environment=with_engine()) as child:
        server = LlamaServer(child, f"http://127.0.0.1:{port}")

        async def ready() -> bool:
            assert child.running, f"llama-server ended: {child.text()[-4000:]}"
            with contextlib.suppress(aiohttp.ClientError, AssertionError):
                return bool((await server.get("/health"))["status"] == "ok")
            return False

        await eventually(ready, "the engine is ready", START, story=child.text, interval=0.05)
        yield server
