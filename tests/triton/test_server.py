"""The server of the tests and its models, called directly: what the other tests of this folder rely on."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import numpy as np
import pytest
import tritonclient.http.aio as http_client
from tritonclient.utils import InferenceServerException

from tests.triton.server import TritonServer

FOUR = np.array([[1, 2, 3, 4]], np.float32)


def tensor(name: str, array: np.ndarray[Any, Any]) -> http_client.InferInput:
    found = http_client.InferInput(name, list(array.shape), {"f": "FP32", "i": "INT32"}[array.dtype.kind])
    found.set_data_from_numpy(array)
    return found


async def test_models(triton_server: TritonServer) -> None:
    async with http_client.InferenceServerClient(triton_server.http) as client:
        result = await client.infer("add_sub", [tensor("INPUT0", FOUR), tensor("INPUT1", FOUR)])
        assert (result.as_numpy("OUTPUT0") == FOUR * 2).all()
        result = await client.infer("twice", [tensor("A", FOUR), tensor("B", FOUR * 3)])
        assert (result.as_numpy("TWICE_B") == FOUR * 6).all()
        result = await client.infer("identity", [tensor("INPUT_FP32", FOUR)])
        assert (result.as_numpy("OUTPUT_FP32") == FOUR).all()
        one = np.array([[5]], np.int32)
        for start, total in ((True, 5), (False, 10), (False, 15)):
            result = await client.infer(
                "running_sum",
                [tensor("IN", one)],
                sequence_id=7,
                sequence_start=start,
                sequence_end=total == 15,
            )
            assert result.as_numpy("OUT").tolist() == [[total]]
        batch = [client.infer("batched", [tensor("X", FOUR[:, :1])]) for _ in range(16)]
        sizes = [int(answer.as_numpy("SIZE")[0, 0]) for answer in await asyncio.gather(*batch)]
        assert max(sizes) > 1
        result = await client.infer("hang", [tensor("SECONDS", np.zeros(1, np.float32))])
        assert result.as_numpy("OUT").tolist() == [0]


async def test_a_decoupled_model_streams(triton_server: TritonServer) -> None:
    url = f"http://{triton_server.http}/v2/models/repeat/generate_stream"
    async with aiohttp.ClientSession() as session, session.post(url, json={"IN": [4, 5]}) as response:
        lines = [line for line in (await response.text()).splitlines() if line]
    assert ['"OUT":4' in lines[0], '"OUT":5' in lines[1]] == [True, True]


async def test_a_model_that_cannot_be_loaded(own_triton_server: TritonServer) -> None:
    async with http_client.InferenceServerClient(own_triton_server.http) as client:
        with pytest.raises(InferenceServerException, match="the file of weights is missing"):
            await client.load_model("broken")
        await client.load_model("add_sub")
        assert await client.is_model_ready("add_sub")
