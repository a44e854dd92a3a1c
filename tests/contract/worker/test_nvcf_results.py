"""Our worker behind NVIDIA's services: assets and large results (docs/internals/interop.md)."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from nvcf_worker import Request, Response, SyncRequest
from nvcf_worker.exchange import large_results
from nvcf_worker.process.durations import Backoff
from tests.contract.worker.services import StartServed
from tests.support.peers.nvcf_services import PeerServices, StrictService

LARGE = 5 * 1024 * 1024 + 1
SIGNED = (
    "?X-Amz-Credential=AKIA%2F20261124%2Fus-west-2%2Fs3%2Faws4_request&X-Amz-Security-Token=a%2Bb%2F%3D%3D"
)


@pytest.fixture
async def far(services: PeerServices) -> AsyncIterator[StrictService]:
    """The WorkerService of the region in which the call came in: only it knows the request."""
    service = StrictService(services)  # type: ignore[abstract] # unserved calls answer UNIMPLEMENTED
    await service.start()
    yield service
    await service.stop()


async def large(request: Request) -> bytes:
    return bytes(LARGE)


async def test_a_signed_address_is_used_to_the_letter(
    services: PeerServices, serve: StartServed, tmp_path: Path
) -> None:
    """Its signature covers each character, and stores do not all read escapes alike."""
    asset = str(uuid.uuid4())
    services.store.assets[asset] = b"data"

    def handler(request: SyncRequest) -> bytes:
        return request.assets[asset].path.read_bytes() + bytes(LARGE)

    await serve(handler, asset_dir=tmp_path / "assets").ready()
    address = services.store.asset_url(asset) + SIGNED
    call = await services.call(
        assets=[(asset, address)], large_url=services.store.upload_url("a%20b%3Dc") + SIGNED
    )
    assert (await call.answer()).status == 302
    assert services.store.targets == [
        f"/store/assets/good/{asset}{SIGNED}",
        f"/store/results/first/a%20b%3Dc{SIGNED}",
    ]


@pytest.mark.parametrize("status", [400, 403])
async def test_addresses_are_renewed_where_the_call_came_in(
    services: PeerServices,
    far: StrictService,
    serve: StartServed,
    tmp_path: Path,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """directResponseUrl: the WorkerService of another region does not find the request in its own queue."""
    monkeypatch.setattr(large_results, "BACKOFF", Backoff(first=0.01, limit=0.01))
    asset = str(uuid.uuid4())
    services.store.assets[asset] = b"data"

    async def handler(request: Request) -> bytes:
        # Once the asset is there, whose old address was refused: the upload is refused as well, once.
        services.store.failures = [status]
        return await large(request)

    await serve(handler, asset_dir=tmp_path / "assets").ready()
    call = await services.call(
        assets=[(asset, services.store.asset_url(asset, "old"))],
        large_url=services.store.upload_url("x"),
        api=far.address,
    )
    assert (await call.answer()).status == 302
    assert far.asked == [call.request_id] * 2
    assert call.request_id in services.store.uploads


async def test_a_direct_response_url_that_is_none(
    services: PeerServices, serve: StartServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_results, "BACKOFF", Backoff(first=0.01, limit=0.01))
    services.store.failures = [400]
    await serve(large).ready()
    call = await services.call(large_url=services.store.upload_url("x"), api="not a url: at all")
    assert (await call.answer()).json()["title"] == "Large Result Not Delivered"


@pytest.mark.parametrize("place", ["asked for", "none"])
async def test_files_of_a_call_without_an_address(
    services: PeerServices, serve: StartServed, place: str
) -> None:
    """Their service may leave the address out; theirs asks for one then."""
    if place == "none":

        def no_address(request_id: str) -> str:
            return ""

        services.store.refreshed_url = no_address  # type: ignore[method-assign]

    def handler(request: SyncRequest) -> str:
        (request.output_dir / "a.txt").write_text("a")
        return "body"

    await serve(handler).ready()
    call = await services.call()
    answer = await call.answer()
    if place == "none":
        assert (answer.status, answer.json()["title"]) == (500, "Large Result Not Delivered")
        return
    assert answer.status == 302
    assert services.store.archive(call.request_id) == {
        "a.txt": b"a",
        f"{call.request_id}.response": b"body",
    }


async def test_a_poll_gets_a_result_by_the_first_calls_address(
    services: PeerServices, serve: StartServed
) -> None:
    """A poll's message names no address of its own."""
    go_on = asyncio.Event()

    async def handler(request: Request) -> bytes:
        await go_on.wait()
        return bytes(LARGE)

    await serve(handler).ready()
    call = await services.call(
        headers={"NVCF-POLL-SECONDS": "1"}, large_url=services.store.upload_url("of-the-call")
    )
    assert (await call.answer()).status == 202
    poll = await services.ask(call)
    go_on.set()
    answer = await poll.answer()
    assert (answer.status, answer.headers["location"]) == (302, services.store.download_url(call.request_id))
    assert list(services.store.uploads) == ["of-the-call"]


async def test_a_stream_with_files_is_a_large_result(services: PeerServices, serve: StartServed) -> None:
    """However the function sends its body: what it left in its output directory is not lost."""

    def handler(request: SyncRequest) -> Any:
        (request.output_dir / "a.txt").write_text("a")
        for _ in range(3):
            yield b"piece"

    await serve(handler).ready()
    call = await services.call(large_url=services.store.upload_url("x"))
    assert (await call.answer()).status == 302
    assert services.store.archive("x") == {"a.txt": b"a", f"{call.request_id}.response": b"piece" * 3}


async def test_a_stream_with_files_that_breaks_off(services: PeerServices, serve: StartServed) -> None:
    def handler(request: SyncRequest) -> Any:
        (request.output_dir / "a.txt").write_text("a")
        yield b"piece"
        raise ValueError("in the middle")

    await serve(handler).ready()
    answer = await (await services.call(large_url=services.store.upload_url("x"))).answer()
    assert (answer.status, answer.json()["title"]) == (500, "Large Result Not Delivered")
    assert not services.store.uploads


async def test_credentials_that_the_service_refuses(
    services: PeerServices, serve: StartServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    await serve(large).ready()
    services.refusal = grpc.StatusCode.PERMISSION_DENIED
    answer = await (await services.call(large_url=services.store.upload_url("x"))).answer()
    assert (answer.status, answer.headers["content-type"]) == (500, "application/problem+json")


async def test_pass_through_sends_large_bodies_as_they_are(
    services: PeerServices, serve: StartServed
) -> None:
    async def handler(request: Request) -> Any:
        return Response(bytes(LARGE), 201)

    await serve(handler).ready()
    answer = await (await services.call(pass_through=True)).answer()
    assert (answer.status, len(answer.body)) == (201, LARGE)
