"""Unmodified clients of Triton through gateway, broker and worker; results equal those of direct calls."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import ml_dtypes
import numpy as np
import psutil
import pytest
import pytest_asyncio
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_client
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException

from nvcf_worker.run.tritonserver.settings import options
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.platform.processes import Child
from tests.support.waiting import eventually
from tests.triton.functions import serving, start_triton

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("triton_clients")]

MODELS = ("identity", "add_sub", "repeat", "hang", "running_sum", "twice")
LONG = 120.0
Array = np.ndarray[Any, Any]

NUMBERS = np.arange(-3, 3).reshape(2, 3)
ARRAYS: dict[str, Array] = {
    "BOOL": NUMBERS > 0,
    **{f"UINT{bits}": (NUMBERS % 7).astype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": NUMBERS.astype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": (NUMBERS / 7).astype(f"float{bits}") for bits in (16, 32, 64)},
    "BYTES": np.array([[b"", b"a\x00\xff", "Zürich".encode()], [b"x" * 300, b"1", b"\n"]], object),
    "BF16": (NUMBERS / 7).astype(ml_dtypes.bfloat16),
}
NO_JSON = ("FP16", "BF16")
"""Types that the protocol has no JSON for."""


@dataclass
class Site:
    """A function that `nvcf-worker triton` serves, and the addresses of its server."""

    platform: Platform
    version: Version
    worker: Child
    http: str
    grpc: str

    @property
    def headers(self) -> dict[str, str]:
        """What a client sends with every call."""
        return {
            "authorization": self.platform.authorization()["Authorization"],
            "function-id": self.version.function_id,
        }

    @property
    def gateway(self) -> str:
        """The gateway's HTTP address as clients take it."""
        return self.platform.gateway.url.removeprefix("http://")

    @property
    def sessions(self) -> str:
        """The gateway's session port, for gRPC."""
        return self.platform.gateway.sessions


class Headers(http_client.InferenceServerClientPlugin):  # type: ignore[misc]
    """Adds headers to all calls of a client."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: Any) -> None:
        request.headers.update(self._headers)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    directory: Path = tmp_path_factory.mktemp("platform")
    async with running_platform(directory, flags=("--sessions", "127.0.0.1:0")) as platform:
        version = await platform.deployed_version()
        worker = await start_triton(platform, version, models=MODELS, concurrency=128)
        await serving(worker)
        [server] = psutil.Process(worker.pid).children()
        ports = options(server.cmdline())
        addresses = (f"127.0.0.1:{ports['http-port']}", f"127.0.0.1:{ports['grpc-port']}")
        yield Site(platform, version, worker, *addresses)


@contextlib.asynccontextmanager
async def clients(kind: Any, site: Site) -> AsyncIterator[tuple[Any, Any]]:
    """Two clients of one kind: one of the server itself, one of the function."""
    http = kind is http_aio
    patience = {"conn_timeout": LONG} if http else {}
    async with (
        kind.InferenceServerClient(site.http if http else site.grpc, **patience) as direct,
        kind.InferenceServerClient(site.gateway if http else site.sessions, **patience) as through,
    ):
        through.register_plugin(Headers(site.headers))
        yield direct, through


@contextlib.contextmanager
def sync_client(kind: Any, site: Site, **arguments: Any) -> Iterator[Any]:
    """A blocking client of the function."""
    address = site.gateway if kind is http_client else site.sessions
    with kind.InferenceServerClient(address, **arguments) as client:
        client.register_plugin(Headers(site.headers))
        yield client


def inputs(kind: Any, arrays: dict[str, Array], **how: bool) -> list[Any]:
    """Return inputs of `identity`."""
    found = []
    for name, array in arrays.items():
        found.append(kind.InferInput(f"INPUT_{name}", list(array.shape), name))
        found[-1].set_data_from_numpy(array, **how)
    return found


def check(result: Any, arrays: dict[str, Array]) -> None:
    """Compare the outputs of `identity` with its inputs."""
    for name, array in arrays.items():
        output = result.as_numpy(f"OUTPUT_{name}")
        assert output is not None, name
        assert output.shape == array.shape, name
        assert output.tolist() == array.tolist(), name


def empty() -> dict[str, Array]:
    return {name: array[:0] for name, array in ARRAYS.items()}


@pytest.mark.parametrize("shape", ["full", "empty"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
async def test_http_in_all_types(site: Site, shape: str, binary: bool) -> None:
    arrays = ARRAYS if shape == "full" else empty()
    if not binary:
        arrays = {name: array for name, array in arrays.items() if name not in NO_JSON}
        if shape == "full":
            # Clients read text from JSON, not bytes.
            arrays = {**arrays, "BYTES": np.array([["", "Zürich"]], object)}
    wanted = [http_client.InferRequestedOutput(f"OUTPUT_{name}", binary_data=binary) for name in arrays]
    given = inputs(http_client, arrays, binary_data=binary)
    body, size = http_client.InferenceServerClient.generate_request_body(
        given, outputs=wanted, request_id="r1"
    )
    length = {} if size is None else {"Inference-Header-Content-Length": str(size)}
    path, answers = "/v2/models/identity/infer", []
    async with aiohttp.ClientSession() as session:
        for address, headers in ((site.http, {}), (site.gateway, site.headers)):
            async with session.post(
                f"http://{address}{path}", data=body, headers={**headers, **length}
            ) as answer:
                names = ("Content-Type", "Inference-Header-Content-Length")
                answers.append(
                    (answer.status, await answer.read(), [answer.headers.get(each) for each in names])
                )
    assert answers[0][0] == 200, answers
    assert answers[1] == answers[0]

    def blocking() -> None:
        with sync_client(http_client, site) as client:
            check(client.infer("identity", given, outputs=wanted, request_id="r1"), arrays)

    await asyncio.to_thread(blocking)


@pytest.mark.parametrize("shape", ["full", "empty"])
async def test_grpc_in_all_types(site: Site, shape: str) -> None:
    arrays = ARRAYS if shape == "full" else empty()
    async with clients(grpc_aio, site) as pair:
        results = [
            await client.infer("identity", inputs(grpc_client, arrays), request_id="r1") for client in pair
        ]
    check(results[1], arrays)
    first, second = (result.get_response().SerializeToString(deterministic=True) for result in results)
    assert first == second

    def blocking() -> None:
        with sync_client(grpc_client, site) as client:
            check(client.infer("identity", inputs(grpc_client, arrays), compression_algorithm="gzip"), arrays)

    await asyncio.to_thread(blocking)


async def test_large_tensors_and_compression(site: Site) -> None:
    """64 MiB by HTTP and by gRPC."""
    large = {"FP32": np.arange(16 * 2**20, dtype=np.float32).reshape(1024, -1)}
    async with clients(http_aio, site) as (_, client):
        result = await client.infer("identity", inputs(http_client, large))
        assert (result.as_numpy("OUTPUT_FP32") == large["FP32"]).all()
        small = inputs(http_client, ARRAYS)
        for one, other in (("gzip", "deflate"), ("deflate", "gzip")):
            how = {"request_compression_algorithm": one, "response_compression_algorithm": other}
            check(await client.infer("identity", small, **how), ARRAYS)
    async with clients(grpc_aio, site) as (_, client):
        result = await client.infer("identity", inputs(grpc_client, large))
        assert (result.as_numpy("OUTPUT_FP32") == large["FP32"]).all()


async def test_metadata_statistics_and_sequences(site: Site) -> None:
    async with clients(http_aio, site) as (direct, through):
        for client in (direct, through):
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("twice")
            assert not await client.is_model_ready("unknown")
        assert await through.get_server_metadata() == await direct.get_server_metadata()
        assert await through.get_model_metadata("identity") == await direct.get_model_metadata("identity")
        assert await through.get_model_config("repeat") == await direct.get_model_config("repeat")
        statistics = await through.get_inference_statistics("add_sub")
        assert statistics["model_stats"][0]["name"] == "add_sub"
        with pytest.raises(InferenceServerException, match="unknown model") as refused:
            await through.infer("unknown", [])
        assert refused.value.status() == "404"
        with pytest.raises(InferenceServerException, match="Callers may not") as refused:
            await through.load_model("batched")
        assert refused.value.status() == "403"
    async with clients(grpc_aio, site) as (direct, through):
        assert await through.is_model_ready("twice")
        assert await through.get_model_config("twice") == await direct.get_model_config("twice")
        assert (await through.get_inference_statistics("add_sub")).model_stats[0].name == "add_sub"
        with pytest.raises(InferenceServerException, match="restricted"):
            await through.load_model("batched")
        one = grpc_client.InferInput("IN", [1, 1], "INT32").set_data_from_numpy(np.array([[5]], np.int32))
        for start, total in ((True, 5), (False, 10), (False, 15)):
            part = {"sequence_id": 9, "sequence_start": start, "sequence_end": total == 15}
            assert (await through.infer("running_sum", [one], **part)).as_numpy("OUT").tolist() == [[total]]


async def test_health_by_plain_grpc(site: Site) -> None:
    async with grpc.aio.insecure_channel(site.sessions) as channel:
        check_health: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = await check_health(b"", metadata=tuple(site.headers.items()), timeout=LONG)
    assert answer == b"\x08\x01"


def numbers(count: int, delay: float = 0.0) -> list[Any]:
    """Return inputs of `repeat`."""
    given = grpc_client.InferInput("IN", [count], "INT32").set_data_from_numpy(
        np.arange(count, dtype=np.int32)
    )
    pause = grpc_client.InferInput("DELAY", [1], "FP32").set_data_from_numpy(np.array([delay], np.float32))
    return [given, pause]


async def test_64_streams_side_by_side(site: Site) -> None:
    async with clients(grpc_aio, site) as (_, client):

        async def one(count: int) -> list[int]:
            async def requests() -> AsyncIterator[dict[str, Any]]:
                yield {"model_name": "repeat", "inputs": numbers(count)}

            found = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                found.append(int(result.as_numpy("OUT")[0]))
                if len(found) == count:
                    break
            return found

        found = await asyncio.gather(*(one(count) for count in range(1, 65)))
    assert found == [list(range(count)) for count in range(1, 65)]


async def test_a_blocking_stream_and_its_end(site: Site) -> None:
    """`start_stream` of a decoupled model with an empty final response; cancelling reaches the model."""
    before = site.worker.text().count("repeat: cancelled")

    def stream() -> list[Any]:
        results: queue.Queue[Any] = queue.Queue()
        with sync_client(grpc_client, site) as client:
            client.start_stream(callback=lambda result, error: results.put((result, error)))
            client.async_stream_infer("repeat", numbers(3), enable_empty_final_response=True)
            found = [results.get(timeout=LONG) for _ in range(4)]
            client.async_stream_infer("repeat", numbers(1000, 0.05))
            results.get(timeout=LONG)
            client.stop_stream(cancel_requests=True)
        return found

    found = await asyncio.to_thread(stream)
    assert [error for _, error in found] == [None] * 4
    assert [result.as_numpy("OUT").tolist() for result, _ in found[:3]] == [[0], [1], [2]]
    assert found[3][0].get_response().parameters["triton_final_response"].bool_param
    await eventually(lambda: site.worker.text().count("repeat: cancelled") > before, "the model has noticed")


async def test_generate_stream(site: Site) -> None:
    """Server-sent events arrive one by one; a caller that leaves is noticed by the model."""
    before = site.worker.text().count("repeat: cancelled")
    path = "/v2/models/repeat/generate_stream"
    async with aiohttp.ClientSession(headers=site.headers) as session:
        async with session.post(f"http://{site.gateway}{path}", json={"IN": [7, 8]}) as answer:
            assert answer.content_type == "text/event-stream"
            through = await answer.read()
        async with session.post(f"http://{site.http}{path}", json={"IN": [7, 8]}) as answer:
            assert through == await answer.read()
        endless = {"IN": list(range(1000)), "DELAY": 0.05}
        async with session.post(f"http://{site.gateway}{path}", json=endless) as answer:
            assert b'"OUT":0' in await answer.content.readuntil(b"\n\n")
            answer.close()
    await eventually(lambda: site.worker.text().count("repeat: cancelled") > before, "the model has noticed")


async def test_time_outs_of_clients(site: Site) -> None:
    def blocking() -> None:
        long = http_client.InferInput("SECONDS", [1], "FP32")
        long.set_data_from_numpy(np.array([2], np.float32))
        with sync_client(http_client, site, network_timeout=0.5) as client, pytest.raises(TimeoutError):
            client.infer("hang", [long])

    await asyncio.to_thread(blocking)
    long = grpc_client.InferInput("SECONDS", [1], "FP32").set_data_from_numpy(np.array([2], np.float32))
    async with clients(grpc_aio, site) as (_, client):
        with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
            await client.infer("hang", [long], client_timeout=0.5)
        assert await client.is_model_ready("hang")
