"""`nvcf-worker llm` behind a real gateway and in front of a real engine."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from nvcf_broker.process import free_port
from tests.llm.functions import CHAT, chat, engine_process, events, post, serving, start_llm, text_of
from tests.llm.server import MODEL, SLOTS, LlamaServer, command
from tests.llm.tiny_model import said
from tests.support.platform.gateways import Platform, running_platform
from tests.support.waiting import eventually

CHANGING = re.compile(
    rb'"(id|created|item_id)":("[^"]*"|\d+)|"timings":\{[^}]*\}|(resp|msg|rs)_\w+|_at":[\d.]+'
)
"""What differs between two equal calls of llama.cpp: ids, times, speeds."""


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path) as platform:
        yield platform


async def direct(engine: LlamaServer, path: str, body: Any) -> tuple[int, str, bytes]:
    """Call the engine itself; return status, media type and body."""
    async with (
        aiohttp.ClientSession(headers={"Connection": "close"}) as session,
        session.post(engine.url + path, json=body) as response,
    ):
        return response.status, response.headers["content-type"], await response.read()


async def test_answers_are_those_of_a_direct_call(platform: Platform, engine: LlamaServer) -> None:
    """Unary and streamed, on each route, byte for byte but for ids and times; errors too."""
    version = await platform.deployed_version()
    worker = await start_llm(platform, version, "--engine-url", engine.url, "--model", MODEL)
    await serving(worker)
    said_five = {"model": MODEL, "input": "Hi", "max_output_tokens": 5, "temperature": 0}
    calls = [
        (CHAT, chat(25)),
        (CHAT, chat(25, stream=True, stream_options={"include_usage": True}, unknown_member={"a": [1]})),
        (CHAT, chat(3, logprobs=True, top_logprobs=2)),
        ("/v1/completions", {"model": MODEL, "prompt": "Hi", "max_tokens": 5, "temperature": 0}),
        ("/v1/responses", said_five),
        ("/v1/responses", {**said_five, "stream": True}),
        (CHAT, {"model": MODEL}),
    ]
    for path, body in calls:
        # The first call fills the engine's cache: the two that are compared find the same in it.
        await direct(engine, path, body)
        expected = await direct(engine, path, body)
        async with post(platform, version, path, body) as response:
            found = (response.status, response.headers["content-type"], await response.read())
        assert found[:2] == expected[:2], path
        assert CHANGING.sub(b"", found[2]) == CHANGING.sub(b"", expected[2]), path
    named = {**chat(25), "model": f"{version.function_id}/{MODEL}"}
    async with platform.session.post(
        platform.gateway.url + CHAT, json=named, headers=platform.authorization()
    ) as response:
        assert (await response.json())["choices"][0]["message"]["content"] == said(25)
    headers = {**platform.authorization(), "function-id": version.function_id}
    async with platform.session.get(platform.gateway.url + "/v1/models", headers=headers) as response:
        assert [each["id"] for each in (await response.json())["data"]] == [MODEL]


async def test_tokens_and_times_are_metrics_of_the_worker(platform: Platform, engine: LlamaServer) -> None:
    """The counts are the engine's own usage, for unary answers and streams."""
    version = await platform.deployed_version()
    port = free_port()
    arguments = ("--engine", "llama.cpp", "--engine-url", engine.url)
    environment = {"NVCF_METRICS_ADDRESS": f"127.0.0.1:{port}"}
    worker = await start_llm(platform, version, *arguments, environment=environment)
    await serving(worker)
    said_five = {"model": MODEL, "input": "Hi", "max_output_tokens": 5}
    calls = [
        (CHAT, chat(7)),
        (CHAT, chat(11, stream=True, stream_options={"include_usage": True})),
        ("/v1/responses", {**said_five, "stream": True}),
        # Nothing says how many tokens these are.
        (CHAT, chat(3, stream=True)),
    ]
    for path, body in calls:
        async with post(platform, version, path, body) as response:
            assert response.status == 200, await response.text()
            await response.read()

    async def metrics() -> str:
        async with platform.session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            return await answer.text()

    def counts(page: str) -> tuple[float, float]:
        return tokens(page, "output"), total(page, r"gen_ai_server_time_to_first_token_\w*count")

    async def counted() -> bool:
        seen.append(counts(await metrics()))
        return seen[-1] == (7 + 11 + 5, 3)

    seen: list[tuple[float, float]] = []
    await eventually(counted, "all are counted", 20, story=lambda: f"{seen[-1]} {worker.text()}")
    page = await metrics()
    # A stream of a few words may be over before the worker looks at it: it has no time between tokens.
    assert total(page, r"gen_ai_server_time_per_output_token_\w*count") <= 2
    assert 'gen_ai_request_model="tiny"' in page
    assert 'gen_ai_provider_name="llama.cpp"' in page


def tokens(page: str, kind: str) -> float:
    """Return the sum of a kind of tokens in a worker's metrics."""
    return total(page, r"gen_ai_client_token_usage\w*_sum", f'gen_ai_token_type="{kind}"')


def total(page: str, name: str, label: str = "") -> float:
    """Return the sum of all series of a metric with a label."""
    series = re.findall(rf"^{name}{{(.*)}} (\S+)$", page, re.MULTILINE)
    return sum(float(value) for labels, value in series if label in labels)


async def test_callers_reach_no_controls_of_the_engine(platform: Platform, engine: LlamaServer) -> None:
    version = await platform.deployed_version()
    worker = await start_llm(platform, version, "--engine-url", engine.url, "--open-path", "/props")
    await serving(worker)
    for path in ("/slots/0?action=erase", "/lora-adapters", "/v1/models/..%2f..%2fslots"):
        async with post(platform, version, path, {}) as response:
            assert response.status == 404, path
            assert (await response.json())["error"]["code"] == "unknown_url"
    headers = {**platform.authorization(), "function-id": version.function_id}
    async with platform.session.get(platform.gateway.url + "/props", headers=headers) as response:
        assert (await response.json())["total_slots"] == SLOTS


async def test_the_engine_stops_when_the_caller_leaves(platform: Platform, engine: LlamaServer) -> None:
    version = await platform.deployed_version()
    worker = await start_llm(platform, version, "--engine-url", engine.url)
    await serving(worker)
    # More words than a slot has room for: it ends long after the test unless it is stopped.
    body = chat(100_000, stream=True, prompt="Go on", ignore_eos=True, repeat_last_n=0, n_probs=20)
    async with aiohttp.ClientSession() as session:
        headers = {**platform.authorization(), "function-id": version.function_id}
        response = await session.post(platform.gateway.url + CHAT, json=body, headers=headers)
        assert await response.content.readany()
        assert await engine.busy_slots() == 1
        response.close()

        async def free() -> bool:
            return await engine.busy_slots() == 0

        await eventually(free, "the slot is free", interval=0.002)


async def test_an_engine_that_dies_costs_no_unbegun_answer(platform: Platform) -> None:
    """Requests without a first byte are answered after the restart; begun streams end with an error event."""
    version = await platform.deployed_version()
    worker = await start_llm(platform, version, "--", *command("{port}"))
    await serving(worker)
    assert f"the engine serves {MODEL}, {SLOTS} requests at once" in worker.text()
    long = chat(1500, stream=True, ignore_eos=True)

    async def streamed() -> bytes:
        async with post(platform, version, CHAT, long) as response:
            assert response.status == 200, await response.text()
            begun.set()
            return await response.read()

    async def unary() -> str:
        async with post(platform, version, CHAT, chat(25, prompt="x" * 1000)) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return str(answer["choices"][0]["message"]["content"])

    begun = asyncio.Event()
    first = asyncio.create_task(streamed())
    await begun.wait()
    engine_process(worker).suspend()
    # The others reach an engine that does nothing any more, or wait in the queue.
    rest = [asyncio.create_task(unary()) for _ in range(8)]

    words = engine_process(worker).cmdline()
    port = int(words[words.index("--port") + 1])

    def all_there() -> bool:
        # A stopped process accepts nothing: its own list lacks them.
        there = [each.raddr for each in psutil.Process(worker.pid).net_connections() if each.raddr]
        return sum(each.port == port for each in there) >= SLOTS

    await eventually(all_there, "the engine has all the requests that it takes", story=worker.text)
    engine_process(worker).kill()
    found = events(await first)
    assert found[-1]["error"]["code"] == "engine_lost", found[-1]
    text = text_of(found[:-1])
    assert text
    assert said(1500).startswith(text)
    assert await asyncio.gather(*rest) == [said(25)] * 8
    assert "it is started again" in worker.text()
    worker.kill(signal.SIGTERM)
    assert await worker.wait() == 0


async def test_an_engine_without_the_wanted_model_ends_the_instance(
    platform: Platform, engine: LlamaServer, tmp_path: Path
) -> None:
    version = await platform.deployed_version()
    environment = {"SHARED_CONFIG_DIR": str(tmp_path)}
    arguments = ("--engine-url", engine.url, "--model", "other")
    worker = await start_llm(platform, version, *arguments, environment=environment)
    assert await worker.wait() == 4
    reason = json.loads((tmp_path / "nvcf-worker-exit.json").read_bytes())
    assert "the engine serves tiny, not other" in reason["text"]


async def test_an_engine_that_does_not_start_ends_the_instance(platform: Platform, tmp_path: Path) -> None:
    version = await platform.deployed_version()
    environment = {"SHARED_CONFIG_DIR": str(tmp_path)}
    arguments = ("--", "llama-server", "-m", "/nowhere.gguf", "--offline")
    worker = await start_llm(platform, version, *arguments, environment=environment)
    assert await worker.wait() == 5
    assert (
        "llama-server ended by itself"
        in json.loads((tmp_path / "nvcf-worker-exit.json").read_bytes())["text"]
    )
