"""Requests that the message leaves out: what becomes of their download."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.errors import BodyUnavailable
from nvcf_worker.exchange import fetch
from nvcf_worker.function.body import RequestBody
from nvcf_worker.message import parse_work


class Download:
    """Hands out `chunks`, then nothing for a long time."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks
        self.waits = asyncio.Event()
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
        self.waits.set()
        await asyncio.sleep(20)

    def close(self) -> None:
        """The connection is given up."""
        self.closed = True


def begin(download: Download, monkeypatch: pytest.MonkeyPatch) -> asyncio.Task[Any]:
    message = nvcf_pb2.WorkerInvokeFunctionRequest(requestId=new_id())
    http1 = message.statelessConfig.connectionConfigs.add().http1Config
    http1.targetURI, http1.responseAuthorizationToken = "http://gateway:1/", "token"
    http1.requestAuthorizationToken = "other"
    work = parse_work(message.SerializeToString(), "", None, region="r", now=0.0)
    exchange: Any = SimpleNamespace(work=work)

    async def fetch_body(*_: Any, **__: Any) -> Download:
        return download

    monkeypatch.setattr(fetch, "fetch_body", fetch_body)
    return asyncio.create_task(fetch.fetch_request(exchange))


async def test_a_body_that_nobody_reads_is_given_up_with_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller would go on sending until a collection of garbage finds the connection."""
    download = Download(b"POST / HTTP/1.1\r\ncontent-length: 100\r\n\r\nabc")
    _, body = await begin(download, monkeypatch)
    assert isinstance(body, RequestBody)
    assert not download.closed
    body.abort()
    assert download.closed


async def test_a_request_that_is_cancelled_while_its_head_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    download = Download(b"POST / HT")
    beginning = begin(download, monkeypatch)
    await download.waits.wait()
    beginning.cancel()
    await asyncio.wait({beginning})
    assert download.closed


async def test_a_request_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    download = Download(b"what?\r\n\r\n")
    with pytest.raises(BodyUnavailable):
        await begin(download, monkeypatch)
    assert download.closed
