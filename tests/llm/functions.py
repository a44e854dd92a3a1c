"""Versions of a platform that `nvcf-worker llm` serves, and calls of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.llm.server import MODEL, START, with_engine
from tests.support.platform.gateways import Platform, Version
from tests.support.platform.processes import Child
from tests.support.waiting import eventually

LAUNCHER = Path(__file__).with_name("launcher.py")
CHAT = "/v1/chat/completions"


async def start_llm(
    platform: Platform, version: Version, *arguments: str, environment: Mapping[str, str] | None = None
) -> Child:
    """Start `nvcf-worker llm` as an agent would. Ended with the platform."""
    variables = {"PATH": with_engine()["PATH"], "LLM_ARGUMENTS": "\n".join(arguments), **(environment or {})}
    return await platform.start_worker(version, LAUNCHER, environment=variables)


async def serving(worker: Child) -> None:
    """Wait until the worker takes requests."""

    def ready() -> bool:
        assert worker.running, worker.text()
        return "the function's server on port" in worker.text()

    await eventually(ready, "it serves", START, story=worker.text)


def engine_process(worker: Child) -> psutil.Process:
    """The engine that a worker has started."""
    [found] = psutil.Process(worker.pid).children()
    return found


def chat(words: int, *, stream: bool = False, prompt: str = "Hello", **members: Any) -> dict[str, Any]:
    """Return the body of a chat call that is answered with so many words."""
    message = {"role": "user", "content": prompt}
    body = {"model": MODEL, "messages": [message], "max_tokens": words, "temperature": 0, "stream": stream}
    return {**body, **members}


def post(platform: Platform, version: Version, path: str, body: Any) -> aiohttp.client._RequestContextManager:
    """Call a path of a function by pass-through."""
    headers = {**platform.authorization(), "function-id": version.function_id}
    return platform.session.post(platform.gateway.url + path, json=body, headers=headers)


def events(body: bytes) -> list[Any]:
    """Return the data of all server-sent events but `[DONE]`, which has to be the last one."""
    parts = body.decode().split("\n\n")
    assert parts.pop() == "", "an event is incomplete"
    data = [line[6:] for part in parts for line in part.split("\n") if line.startswith("data: ")]
    return [json.loads(each) for each in data if each != "[DONE]"]


def text_of(found: list[Any]) -> str:
    """Return the content of the events of a chat."""
    return "".join(
        choice["delta"].get("content") or "" for each in found for choice in each.get("choices", ())
    )
