"""OpenAI's own Python client, and calls byte for byte, against a function with its own worker process."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.functions.openai_engine import WORDS
from tests.support.platform.gateways import ACCOUNT, Platform, Version

openai: Any = importlib.import_module("openai")
ENGINE = Path(__file__).parents[2] / "functions" / "openai_engine.py"
TEXT = "".join(WORDS)
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


def llm(*uris: str, **config: str) -> dict[str, Any]:
    """Return the fields of a version of type LLM."""
    return {"functionType": "LLM", "models": [{"name": "tiny", "llmConfig": {"uris": uris, **config}}]}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def version(platform: Platform) -> AsyncIterator[Version]:
    made = await platform.deployed_version("engine")
    worker = await platform.start_worker(made, ENGINE, "engine", concurrency=8)
    yield made
    worker.process.terminate()
    await worker.process.wait()


def client(platform: Platform, key: str = "invoke", **settings: Any) -> Any:
    return openai.AsyncOpenAI(
        api_key=platform.keys.get(key, key), base_url=platform.gateway.url + "/v1", max_retries=0, **settings
    )


async def post(platform: Platform, body: bytes, path: str = CHAT, **headers: str) -> tuple[int, Any, Any]:
    url = platform.gateway.url + path
    headers = {**platform.authorization("invoke"), **headers}
    async with platform.session.post(url, data=body, headers=headers) as response:
        return response.status, await response.json(), response.headers


async def test_openais_client_calls_a_function(platform: Platform, version: Version) -> None:
    model = f"{version.function_id}/tiny"
    async with client(platform) as api:
        chat = await api.chat.completions.create(model=model, messages=HELLO)
        assert (chat.choices[0].message.content, chat.usage.completion_tokens) == (TEXT, 4)
        # The function's answer is not touched: it names the model as the function does.
        assert chat.model == "tiny"
        assert chat._request_id
        text = await api.completions.create(model=f"{version.function_id}/{version.id}/tiny", prompt="hello")
        assert text.choices[0].text == TEXT
        found = await api.embeddings.create(model=model, input="hello", encoding_format="float")
        assert found.data[0].embedding == [0.5, 0.25]
        stream = await api.chat.completions.create(model=model, messages=HELLO, stream=True)
        words = [chunk.choices[0].delta.content async for chunk in stream]
        assert "".join(filter(None, words)) == TEXT


async def test_the_blocking_client_streams(platform: Platform, version: Version) -> None:
    def read() -> str:
        api = openai.OpenAI(api_key=platform.keys["invoke"], base_url=platform.gateway.url + "/v1")
        with (
            api,
            api.chat.completions.create(
                model=f"{version.function_id}/tiny", messages=HELLO, stream=True
            ) as stream,
        ):
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(read) == TEXT


async def test_only_the_name_of_the_model_changes(platform: Platform, version: Version) -> None:
    head = '{ "echo":true,\t"top_k" : 4.50, "a":{"model":"inner"},"text":"\\u00e9é\\/ ]}\\"",'
    tail = ' ,"guided_json":{"type":"object"}, "n":1e2 }\n'
    sent = f'{head}"\\u006dodel":  "{version.function_id.upper()}/org\\/tiny"{tail}'.encode()
    status, answer, headers = await post(platform, sent, "/v1/responses?trace=1")
    assert status == 200
    received = f'{head}"\\u006dodel":  "org/tiny"{tail}'
    assert answer == {"path": "/v1/responses", "raw": received, "length": str(len(received.encode()))}
    assert headers["x-request-id"] == headers["nvcf-reqid"]


async def test_a_large_body_passes(platform: Platform, version: Version) -> None:
    picture = "A" * 3_000_000
    body = {"echo": True, "model": f"{version.function_id}/tiny", "picture": picture, "parts": ["a"] * 50_000}
    status, answer, _ = await post(platform, json.dumps(body).encode())
    assert status == 200
    assert json.loads(answer["raw"]) == {**body, "model": "tiny"}


async def test_refusals_are_openais_errors(platform: Platform, version: Version) -> None:
    model = f"{version.function_id}/tiny"
    async with client(platform, "no-key") as api:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await api.chat.completions.create(model=model, messages=HELLO)
        assert unknown.value.code == "invalid_api_key"
        assert unknown.value.request_id
    async with client(platform, "list") as api:
        with pytest.raises(openai.PermissionDeniedError):
            await api.chat.completions.create(model=model, messages=HELLO)
    async with client(platform, "foreign") as api:
        with pytest.raises(openai.NotFoundError) as foreign:
            await api.chat.completions.create(model=model, messages=HELLO)
        assert (foreign.value.code, foreign.value.param) == ("model_not_found", "model")
    async with client(platform) as api:
        with pytest.raises(openai.BadRequestError) as other:
            await api.chat.completions.create(model="gpt-5", messages=HELLO)
        assert other.value.param == "model"
        with pytest.raises(openai.UnprocessableEntityError) as failed:
            await api.chat.completions.create(model=model, messages=HELLO, extra_body={"fail_with": 422})
        assert failed.value.body["message"] == "the prompt is too odd"
    for body, said in (
        (b"[]", "no JSON object"),
        (b'{"messages": []}', "names no model"),
        (b'{"model": 1}', "a string"),
        (b'{"model": "a", "model": "b"}', "two members 'model'"),
    ):
        status, answer, _ = await post(platform, body)
        assert (status, said in answer["error"]["message"]) == (400, True)
    status, answer, _ = await post(platform, b" " * 9_000_000)
    assert (status, answer["error"]["code"]) == (413, "request_too_large")
    async with platform.session.get(platform.gateway.url + CHAT) as response:
        assert response.status == 405
        assert (await response.json())["error"]["code"] == "method_not_supported"


async def test_waits_and_rate_limits_end_with_openais_errors(platform: Platform) -> None:
    limited = await platform.deployed_version("limited", rateLimit={"rateLimit": "1-H"})
    model = f"{limited.function_id}/tiny"
    status, answer, _ = await post(
        platform, json.dumps({"model": model}).encode(), **{"NVCF-POLL-SECONDS": "1"}
    )
    assert (status, answer["error"]["code"]) == (504, "timeout")
    await platform.queue_is_empty(limited)
    async with client(platform) as api:
        with pytest.raises(openai.RateLimitError) as refused:
            await api.chat.completions.create(model=model, messages=HELLO)
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert int(refused.value.response.headers["retry-after"]) > 0


async def test_models_that_the_caller_may_use(platform: Platform, version: Version) -> None:
    made = await platform.deployed_version("declared", **llm(CHAT))
    name = f"{made.function_id}/tiny"
    async with client(platform) as api:
        listed = {model.id: model async for model in api.models.list()}
        # A function that declares no models serves any name, and none is listed.
        assert name in listed
        assert not any(version.function_id in each for each in listed)
        assert listed[name].owned_by == ACCOUNT
        assert (await api.models.retrieve(name)).id == name
        with pytest.raises(openai.BadRequestError) as undeclared:
            await api.embeddings.create(model=name, input="hello")
        assert undeclared.value.code == "endpoint_not_served"
        with pytest.raises(openai.NotFoundError) as unknown:
            await api.chat.completions.create(model=f"{made.function_id}/other", messages=HELLO)
        assert unknown.value.code == "model_not_found"
    async with client(platform, "foreign") as api:
        assert name not in [model.id async for model in api.models.list()]


async def test_a_stream_waits_for_its_first_instance(platform: Platform) -> None:
    made = await platform.deployed_version("cold", **llm(CHAT))
    body = json.dumps({"model": f"{made.function_id}/tiny", "stream": True}).encode()
    url = platform.gateway.url + CHAT
    async with platform.session.post(url, data=body, headers=platform.authorization()) as response:
        # The head and a comment are there although nothing serves the function.
        assert response.status == 200
        assert await response.content.readline() == b": waiting\n"
        worker = await platform.start_worker(made, ENGINE, "engine")
        rest = (await response.content.read()).decode()
    events = [line for line in rest.splitlines() if line.startswith("data: ")]
    assert [json.loads(line[6:])["choices"][0]["delta"].get("content") for line in events[:4]] == list(WORDS)
    assert events[-1] == "data: [DONE]"
    await platform.queue_is_empty(made)
    # An error that follows a comment is an event.
    worker.process.terminate()
    await worker.process.wait()
    async with client(platform) as api:
        model = f"{made.function_id}/tiny"
        stream = await api.chat.completions.create(
            model=model, messages=HELLO, stream=True, extra_body={"fail_with": 429}
        )
        await platform.start_worker(made, ENGINE, "engine")
        with pytest.raises(openai.APIError, match="the prompt is too odd"):
            await anext(aiter(stream))


async def test_a_stream_that_breaks_ends_with_an_error_event(platform: Platform) -> None:
    made = await platform.deployed_version("dying", **llm(CHAT))
    await platform.start_worker(made, ENGINE, "engine")
    async with client(platform) as api:
        stream = await api.chat.completions.create(
            model=f"{made.function_id}/tiny",
            messages=HELLO,
            stream=True,
            extra_body={"die_before": "brown "},
        )
        chunks = aiter(stream)
        words = [(await anext(chunks)).choices[0].delta.content for _ in range(2)]
        with pytest.raises(openai.APIError, match="the worker left") as broken:
            await anext(chunks)
    assert words == ["the ", "quick "]
    assert broken.value.code == "worker_lost"


async def remaining(platform: Platform, model: str) -> int:
    """Return how many tokens were left before a small call that is answered."""
    body = json.dumps({"model": model, "messages": HELLO, "max_tokens": 4}).encode()
    status, answer, headers = await post(platform, body)
    assert (status, answer["usage"]["total_tokens"]) == (200, 7)
    return int(headers["x-ratelimit-remaining-tokens"]) + math.ceil(len(body) / 4) + 4


async def test_tokens_are_charged_by_usage_that_the_caller_did_not_ask_for(platform: Platform) -> None:
    made = await platform.deployed_version("limited-tokens", **llm(CHAT, tokenRateLimit="1000-W"))
    await platform.start_worker(made, ENGINE, "engine", concurrency=4)
    model = f"{made.function_id}/tiny"
    assert await remaining(platform, model) == 1000
    async with client(platform) as api:
        for options in ({}, {"stream_options": {"include_usage": True}}):
            stream = await api.chat.completions.create(model=model, messages=HELLO, stream=True, **options)
            chunks = [chunk async for chunk in stream]
            # The chunk with the usage alone comes only to the caller that has asked for it.
            assert len(chunks) == len(WORDS) + 1 + len(options)
            assert (chunks[-1].usage is not None) == bool(options)
        assert await remaining(platform, model) == 1000 - 3 * 7
        with pytest.raises(openai.UnprocessableEntityError):
            await api.chat.completions.create(model=model, messages=HELLO, extra_body={"fail_with": 422})
        # An error costs nothing.
        assert await remaining(platform, model) == 1000 - 4 * 7
        with pytest.raises(openai.BadRequestError) as impossible:
            await api.chat.completions.create(model=model, messages=HELLO, max_tokens=1001)
        assert impossible.value.code == "tokens_over_limit"
        with pytest.raises(openai.RateLimitError, match="token limit reached") as refused:
            await api.chat.completions.create(model=model, messages=HELLO, max_tokens=999)
        headers = refused.value.response.headers
        assert (headers["x-ratelimit-limit-tokens"], int(headers["retry-after"]) > 0) == ("1000", True)


async def test_a_broken_stream_is_charged_what_was_sent(platform: Platform) -> None:
    made = await platform.deployed_version("broken-tokens", **llm(CHAT, tokenRateLimit="1000-W"))
    await platform.start_worker(made, ENGINE, "engine")
    model = f"{made.function_id}/tiny"
    body = json.dumps({"model": model, "stream": True, "die_before": "brown "}).encode()
    url = platform.gateway.url + CHAT
    async with platform.session.post(url, data=body, headers=platform.authorization("invoke")) as response:
        assert b"worker_lost" in await response.content.read()
    await platform.start_worker(made, ENGINE, "engine")
    assert await remaining(platform, model) == 1000 - math.ceil(len(body) / 4) - 2


async def test_a_caller_that_leaves_takes_its_request_out_of_the_queue(platform: Platform) -> None:
    made = await platform.deployed_version("left", **llm(CHAT))
    body = json.dumps({"model": f"{made.function_id}/tiny", "stream": True}).encode()
    url = platform.gateway.url + CHAT
    async with platform.session.post(url, data=body, headers=platform.authorization("invoke")) as response:
        assert await response.content.readline() == b": waiting\n"
        response.close()
    await platform.queue_is_empty(made)
