"""A4: the platform starts a second time on the disk on which it started once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvcf_broker.connection import connect_broker
from nvcf_broker.jetstream import JetStream
from nvcf_broker.process import spawn
from nvcf_broker.server import LocalBroker
from nvcf_proto.budget import GIB, MIB
from nvcf_proto.stores import STORES
from tests.support.platform.nvcf_up import LocalUp, environment, local_up
from tests.support.waiting import eventually


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes in memory; it takes what is written only."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    unmount = ["umount", "--lazy", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(unmount, check=False)


def _gateway(up: LocalUp) -> dict[str, object]:
    return dict(up.state["children"]["gateway"])


async def _gateway_survives_a_kill(up: LocalUp) -> None:
    before = _gateway(up)
    os.kill(int(str(before["pid"])), signal.SIGKILL)

    def is_back() -> bool:
        now = _gateway(up)
        return now["pid"] not in (None, before["pid"]) and now["state"] == "running"

    await eventually(is_back, "the gateway is back", story=(up.data / "gateway.log").read_text)


@pytest.mark.parametrize("size", [7 * GIB, GIB])
async def test_a4_starts_again_after_down_and_after_a_killed_gateway(tmp_path: Path, size: int) -> None:
    with small_disk(tmp_path, size) as folder:
        async with local_up(folder) as up:
            await _gateway_survives_a_kill(up)
        # What is free now does not count any more.
        (folder / "other").write_bytes(b"x" * (size // 4 if size < 2 * GIB else 64 * MIB))
        async with local_up(folder) as up:
            await _gateway_survives_a_kill(up)
            assert "data takes at most" in (folder / "up.log").read_text()


async def test_a4_another_size_changes_the_stores_and_holds_at_the_next_starts(tmp_path: Path) -> None:
    with small_disk(tmp_path, 4 * GIB) as folder:
        # The broker takes smaller bounds in steps.
        for wanted, total in (
            (None, 2 * GIB),
            (3 * GIB, 3 * GIB),
            (None, 3 * GIB),
            (GIB, int(2.4 * GIB)),
            (GIB, int(1.92 * GIB)),
        ):
            async with LocalBroker(folder, data_max=wanted) as broker:
                assert broker.budget is not None
                assert broker.budget.total == pytest.approx(total, rel=1e-6)
                client = await connect_broker(broker.url, broker.credentials_file, name="test")
                try:
                    await _ensure_data_stores(JetStream(client), broker.budget.data)
                finally:
                    await client.close()


async def _ensure_data_stores(jetstream: JetStream, budget: int) -> None:
    """Make what tenants' data is stored in; the control plane's stores are in another broker account."""
    stores = (each for each in STORES if each.account == "data")
    for store, name in ((each, name) for each in stores for name in each.name.split(", ")):
        bounds = store.bounds(budget)
        if "max_bytes" in bounds:
            config = {"name": name, "storage": "file", "subjects": [name], **bounds}
            await jetstream.ensure_stream(config)
            found = await jetstream.stream_info(name)
            assert found is not None
            assert found.config["max_bytes"] == bounds["max_bytes"]


@pytest.mark.parametrize(("size", "flags"), [(300 * MIB, ()), (GIB, ("--data-max", "5G"))])
async def test_a4_too_small_a_disk_is_said_with_sizes_and_the_way_out(
    tmp_path: Path, size: int, flags: tuple[str, ...]
) -> None:
    with small_disk(tmp_path, size) as folder:
        process = await spawn(
            [sys.executable, "-m", "nvcf_cli", "up", "--http-port", "0", *flags],
            env=environment(folder / "data"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
        assert process.returncode != 0
        assert b"iB" in out
        assert b"--data-max" in out
