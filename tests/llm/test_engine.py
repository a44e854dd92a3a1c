"""The engine of these tests says what the others rely on."""

from __future__ import annotations

import aiohttp

from tests.llm.server import MODEL, LlamaServer
from tests.llm.tiny_model import said

CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 25,
    "temperature": 0,
}


async def test_the_answer_is_known_word_for_word(engine: LlamaServer) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(engine.url + "/v1/chat/completions", json=CHAT) as response,
    ):
        answer = await response.json()
    assert response.status == 200, answer
    assert answer["choices"][0]["message"]["content"].strip() == said(25).strip()
    assert answer["usage"]["completion_tokens"] == 25


async def test_it_names_its_model(engine: LlamaServer) -> None:
    models = await engine.get("/v1/models")
    assert [each["id"] for each in models["data"]] == [MODEL]
