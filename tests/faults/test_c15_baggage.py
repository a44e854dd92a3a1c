"""C15: the caller's baggage is that of the function's code."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.otlp.receiver import OtlpReceiver
from tests.support.platform.gateways import running_platform
from tests.support.waiting import eventually

FUNCTION = """
import os
from opentelemetry import baggage
from nvcf_worker import Request, SyncRequest, App, serve

async def on_the_loop(request: Request):
    return dict(baggage.get_all())

def on_a_thread(request: SyncRequest):
    return dict(baggage.get_all())

app = App()
app.route("/loop", methods=["POST"])(on_the_loop)
app.route("/thread", methods=["POST"])(on_a_thread)
serve(app, isolation=os.environ["ISOLATION"])
"""


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("telemetry", [False, True])
async def test_c15_baggage_reaches_the_handler(tmp_path: Path, isolation: str, telemetry: bool) -> None:
    file = tmp_path / "function.py"
    file.write_text(FUNCTION)
    with OtlpReceiver() as backend:
        async with running_platform(tmp_path) as platform:
            version = await platform.deployed_version()
            environment = {"ISOLATION": isolation, **(backend.environment() if telemetry else {})}
            worker = await platform.start_worker(version, file, environment=environment)
            await eventually(lambda: "pulling requests" in worker.text(), "ready", story=worker.text)
            for path in ("/loop", "/thread"):
                for flags in ("00", "01"):
                    headers = {
                        **platform.authorization(),
                        "function-id": version.function_id,
                        "traceparent": f"00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-{flags}",
                        "baggage": "user=Ada,place=a%20b",
                    }
                    async with (
                        asyncio.timeout(60),
                        platform.session.post(platform.gateway.url + path, headers=headers) as response,
                    ):
                        found = json.loads(await response.read())
                    assert found == {"user": "Ada", "place": "a b"}, (path, flags)
