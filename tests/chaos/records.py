"""What is left of a run, for whoever looks for the way of a call. Logs of its processes are there already."""

from __future__ import annotations

import json
from pathlib import Path

from tests.chaos.caller import Counts
from tests.chaos.supervised import SupervisedPlatform


async def write_records(directory: Path, counts: Counts, supervised: SupervisedPlatform) -> int:
    """Write attempts of slow calls, faults, brokers' logs and the queue's state; return its deliveries."""
    for name, trail in counts.trails.items():
        (directory / f"call-{name}.log").write_text("\n".join(trail) + "\n")
    (directory / "faults.log").write_text("\n".join(supervised.history) + "\n")
    for number, node in enumerate(supervised.nodes):
        # The disk of the brokers ends with the run.
        for file in node.files.directory.glob("*.log*"):
            (directory / f"broker-{number}-{file.name}").write_bytes(file.read_bytes())
    client = await supervised.platform.broker_client()
    try:
        stream = f"rq_local_{supervised.version.id}"
        queue = await client.request(f"$JS.API.STREAM.INFO.{stream}", b'{"subjects_filter":">"}', timeout=10)
        info = await client.request(f"$JS.API.CONSUMER.INFO.{stream}.{stream}_workers", b"", timeout=10)
    finally:
        await client.close()
    (directory / "queue.json").write_bytes(queue.data + b"\n" + info.data + b"\n")
    return int(json.loads(info.data)["delivered"]["consumer_seq"])
