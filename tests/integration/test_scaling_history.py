"""The broker keeps the load of versions, and `nvcf-simulate` records and advises from it: real parts."""

from __future__ import annotations

import asyncio
import csv
import json
import signal
import sys
from pathlib import Path

from nvcf_broker.process import spawn
from tests.integration.test_autoscaler import FROM_ZERO, SOON, leader
from tests.support.platform.compute_plane import Plane, running_plane
from tests.support.platform.gateways import Version

REQUESTS = 12


async def simulate(plane: Plane, *arguments: str) -> tuple[int, str]:
    """Run nvcf-simulate with the broker of the plane. Return its exit code and all that it printed."""
    broker = plane.platform.broker
    process = await spawn(
        [
            sys.executable, "-m", "nvcf_autoscaler.simulate", *arguments,
            "--nats", broker.url, "--nats-credentials", str(broker.control_credentials_file),
        ],
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def burst(plane: Plane, version: Version) -> None:
    """Send requests at once, and wait until the instances for them have come and gone."""
    answers = await asyncio.gather(*(plane.ask(version, number) for number in range(REQUESTS)))
    assert {each.status for each in answers} == {200}
    await plane.until(lambda: not plane.live(version), "back to zero")


async def test_load_is_recorded_over_a_change_of_leaders_and_advice_is_given(tmp_path: Path) -> None:
    async with running_plane(tmp_path, autoscalers=2) as plane:
        await plane.start_agent("local", "--gpu", "SIM=4")
        trace = tmp_path / "trace.csv"
        assert await simulate(plane, "record", str(trace)) == (
            2,
            "nvcf-simulate: the platform has recorded no requests of any function in this time; "
            "the autoscaler writes every 30 s\n",
        )
        version = await plane.deploy({**FROM_ZERO, "gpu": "SIM"}, scaling=SOON, SECONDS="2.5")
        for _ in range(2):
            await plane.until(lambda: leader(plane) >= 0, "a leader")
            first = leader(plane)
            await burst(plane, version)
            # A leader that ends in order writes what it has.
            plane.autoscalers[first].kill(signal.SIGTERM)
            assert await plane.autoscalers[first].wait() == 0

        code, text = await simulate(plane, "record", str(trace))
        assert code == 0, text
        with trace.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2 * REQUESTS
        # The service time is known to a second's sample for each instance.
        mean = sum(float(row["duration"]) for row in rows) / len(rows)
        assert 1.5 < mean < 4.0
        (settings,) = json.loads(trace.with_name("trace.csv.json").read_text())
        assert settings["functionVersionId"] == version.id
        assert settings["specification"]["max_instances"] == 4
        assert settings["specification"]["startup"]["median"] > 0.1
        assert settings["measuredGpuSeconds"] > 2 * REQUESTS * 2.5 * 0.8

        code, text = await simulate(plane, "advise", version.id, "--price", "2")
        assert code == 0, text
        assert f"{2 * REQUESTS} requests" in text
        assert "a*  balanced, 0 to 4" in text
        assert max(map(len, text.splitlines())) <= 80
        assert (await simulate(plane, "advise", version.id, "--account", "other"))[0] == 2
