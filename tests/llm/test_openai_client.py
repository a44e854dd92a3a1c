"""OpenAI's own Python client, the gateway's routes, `nvcf-worker llm` and a real engine."""

from __future__ import annotations

import asyncio
import importlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.llm.functions import engine_process, serving, start_llm
from tests.llm.server import MODEL, LlamaServer, command, running_engine
from tests.llm.tiny_model import said
from tests.support.platform.gateways import Gateway, Platform, Version, running_platform
from tests.support.platform.processes import Child

openai: Any = importlib.import_module("openai")
HELLO = [{"role": "user", "content": "Hello"}]
FIXED = {"max_tokens": 8, "temperature": 0}
CHANGING = {"id", "created", "created_at", "completed_at", "item_id", "timings", "response_id"}
"""Members that differ between two equal calls: ids, times, speeds."""
STREAMS = 50
WORDS = 40
LONG = 1500
BROKEN = {"ReadError", "RemoteProtocolError"}
"""The client's HTTP library's own errors, which pass through while a stream is read."""
BROKER_CODES = {"service_unavailable", "timeout", "worker_lost"}
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path, gateways=2) as platform:
        yield platform


def client(platform: Platform, gateway: Gateway | None = None) -> Any:
    url = (gateway or platform.gateway).url + "/v1"
    return openai.AsyncOpenAI(api_key=platform.keys["invoke"], base_url=url, max_retries=0, timeout=90)


def at_engine(engine: LlamaServer) -> Any:
    return openai.AsyncOpenAI(api_key="none", base_url=engine.url + "/v1", max_retries=0, timeout=90)


def stable(value: Any) -> Any:
    """Return what two equal calls have in common."""
    if isinstance(value, dict):
        return {name: stable(each) for name, each in value.items() if name not in CHANGING}
    return [stable(each) for each in value] if isinstance(value, list) else value


async def answer(api: Any, route: str, model: str, members: dict[str, Any]) -> Any:
    """Call a route; return the answer, or the list of a stream's chunks."""
    create = {
        "chat": api.chat.completions,
        "completions": api.completions,
        "embeddings": api.embeddings,
        "responses": api.responses,
    }[route].create
    found = await create(model=model, **members)
    if members.get("stream"):
        return [stable(chunk.to_dict()) async for chunk in found]
    return stable(found.to_dict())


async def compare(
    platform: Platform, version: Version, engine: LlamaServer, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    async with client(platform) as api, at_engine(engine) as direct:
        for route, members in calls:
            # The first call fills the engine's cache: the two that are compared find the same in it.
            await answer(direct, route, MODEL, members)
            expected = await answer(direct, route, MODEL, members)
            found = await answer(api, route, f"{version.function_id}/{MODEL}", members)
            assert found == expected, (route, members)


async def test_each_route_answers_as_the_engine_itself(platform: Platform, engine: LlamaServer) -> None:
    version = await platform.deployed_version()
    await serving(await start_llm(platform, version, "--engine-url", engine.url))
    chat = {"messages": HELLO, **FIXED}
    tool = {"type": "function", "function": TOOL}
    said_five = {"input": "Hi", "max_output_tokens": 5, "temperature": 0}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("chat", chat),
        ("chat", {**chat, "stream": True}),
        ("chat", {**chat, "stream": True, "stream_options": {"include_usage": True}}),
        ("chat", {**chat, "logprobs": True, "top_logprobs": 2}),
        ("chat", {**chat, "tools": [tool], "tool_choice": "none"}),
        # A grammar of the engine, which no other knows.
        ("chat", {**chat, "extra_body": {"grammar": 'root ::= " quick"', "unknown": {"a": [1]}}}),
        ("completions", {"prompt": "Hi", **FIXED}),
        ("completions", {"prompt": "Hi", **FIXED, "stream": True}),
        ("responses", said_five),
        ("responses", {**said_five, "stream": True}),
    ]
    await compare(platform, version, engine, calls)
    model = f"{version.function_id}/{MODEL}"
    async with client(platform) as api, at_engine(engine) as direct:
        too_long = [{"role": "user", "content": "much too long " * 2000}]
        refusals = []
        for each, name in ((api, model), (direct, MODEL)):
            with pytest.raises(openai.BadRequestError) as refused:
                await each.chat.completions.create(model=name, messages=too_long)
            refusals.append(refused.value)
        assert refusals[0].body == refusals[1].body
        assert "context" in refusals[0].message


async def test_embeddings_are_those_of_the_engine(platform: Platform, tmp_path: Path) -> None:
    version = await platform.deployed_version()
    async with running_engine(tmp_path / "engine.log", "--embeddings", "--pooling", "mean") as engine:
        await serving(await start_llm(platform, version, "--engine-url", engine.url))
        # Without a format the client asks for base64 and decodes it.
        calls: list[tuple[str, dict[str, Any]]] = [
            ("embeddings", {"input": ["the quick fox", "a dog"]}),
            ("embeddings", {"input": "rain", "encoding_format": "float"}),
        ]
        await compare(platform, version, engine, calls)


async def streamed(api: Any, version: Version, words: int, begun: asyncio.Event | None = None) -> str:
    """Return the text of a stream; `begun` is set at its first word."""
    stream = await api.chat.completions.create(
        model=f"{version.function_id}/{MODEL}",
        messages=HELLO,
        max_tokens=words,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    text = ""
    try:
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if text and begun is not None:
                begun.set()
    finally:
        assert said(words).startswith(text)
    return text


async def instances(platform: Platform, version: Version, count: int) -> list[Child]:
    workers = [await start_llm(platform, version, "--", *command("{port}")) for _ in range(count)]
    await asyncio.gather(*map(serving, workers))
    return workers


async def test_many_streams_on_two_instances_have_all_their_words(platform: Platform) -> None:
    version = await platform.deployed_version()
    await instances(platform, version, 2)
    async with client(platform) as one, client(platform, platform.gateways[1]) as other:
        calls = [streamed((one, other)[at % 2], version, WORDS) for at in range(STREAMS)]
        assert await asyncio.gather(*calls) == [said(WORDS)] * STREAMS


@pytest.mark.parametrize("victim", ["gateway", "broker", "worker", "engine"])
async def test_a_kill_in_the_middle_leaves_a_whole_answer_or_a_clear_error(
    platform: Platform, victim: str
) -> None:
    """Streams never end as if they were whole; what they had brought is a part of the right text."""
    version = await platform.deployed_version()
    workers = await instances(platform, version, 2)
    async with client(platform) as api:
        begun = [asyncio.Event() for _ in range(6)]
        calls = [asyncio.create_task(streamed(api, version, LONG, each)) for each in begun]
        # The last ones may still wait in the queue when it happens.
        calls += [asyncio.create_task(streamed(api, version, WORDS)) for _ in range(6)]
        await asyncio.gather(*(each.wait() for each in begun))
        if victim == "gateway":
            platform.gateway.child.kill()
        elif victim == "worker":
            workers[0].kill(signal.SIGKILL)
        elif victim == "engine":
            engine_process(workers[0]).kill()
        else:
            await platform.broker.kill()
            await platform.broker.start()
        ends = await asyncio.gather(*calls, return_exceptions=True)
    whole = {said(LONG), said(WORDS)}
    for end in ends:
        assert end in whole if isinstance(end, str) else is_clear(end, victim), repr(end)
    async with client(platform, platform.gateways[1]) as api:
        assert await streamed(api, version, WORDS) == said(WORDS)


def is_clear(end: BaseException, victim: str) -> bool:
    """Whether a call's end says what happened: an error event; a broken connection if its gateway is gone."""
    if victim == "gateway":
        return isinstance(end, openai.APIConnectionError) or type(end).__name__ in BROKEN
    codes = {"worker": {"worker_lost"}, "engine": {"engine_lost"}}.get(victim, BROKER_CODES)
    return isinstance(end, openai.APIError) and end.code in codes
