"""C3: proxies of a function's environment are for the function's own calls, not for the worker's."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from nvcf_broker.process import free_port
from tests.contract.worker.conftest import StartProcess
from tests.support.otlp.receiver import OtlpReceiver
from tests.support.peers.gateway import PeerGateway
from tests.support.platform.nats_server import NatsServer
from tests.support.platform.workers import WorkerProcess
from tests.support.waiting import eventually

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
NOWHERE = "http://127.0.0.1:1"
NAMES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
PROXIES = {name: NOWHERE for lower in NAMES for name in (lower, lower.upper())} | {
    "no_proxy": "",
    "NO_PROXY": "",
}

FUNCTION = """
import logging, os
from nvcf_worker import Request, serve

async def handler(request: Request):
    logging.getLogger("function").warning("asked")
    return os.environ["https_proxy"]

serve(handler)
"""

SERVER = """
import sys
from concurrent import futures
import grpc
port = sys.argv[1]
check = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\\x08\\x01")
handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check})
server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[handler])
server.add_insecure_port(f"127.0.0.1:{port}")
server.start()
server.wait_for_termination()
"""


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_c3_the_worker_reaches_platform_and_collector(
    gateway: PeerGateway, start_process: StartProcess, protocol: str
) -> None:
    with OtlpReceiver() as backend:
        worker = start_process(FUNCTION, environment={**PROXIES, **backend.environment(protocol)})
        await worker.ready()
        async with asyncio.timeout(30):
            answer = await (await gateway.invoke(b"x" * 100_000, trace=SAMPLED)).answer()
        # The function's own clients still see the proxy.
        assert answer.body.decode() == NOWHERE
        for found in (lambda: backend.spans("handler"), lambda: backend.logs("asked")):
            await eventually(found, "telemetry arrives", 15, story=backend.summary)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_c3_the_probes_of_a_sidecar(
    gateway: PeerGateway, broker: NatsServer, tmp_path: Path, protocol: str
) -> None:
    port = free_port()
    if protocol == "grpc":
        (tmp_path / "server.py").write_text(SERVER)
        command = [sys.executable, str(tmp_path / "server.py"), str(port)]
    else:
        command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
        command.append(str(port))
    arguments = ["sidecar", "--port", str(port), "--health", "/" if protocol == "http" else "model"]
    arguments += ["--health-protocol", protocol, "--", *command]
    worker = WorkerProcess(arguments, gateway, broker, tmp_path, environment=PROXIES)
    try:
        await worker.ready()
        if protocol == "http":
            async with asyncio.timeout(30):
                assert (await (await gateway.invoke(b"", method="GET")).answer()).status == 200
    finally:
        worker.kill()
