"""Size of a function's image: packages and bytes of the worker and of other servers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.bench.peer_servers import PEERS, Peer
from tests.bench.peers import Unavailable, python_of

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
# The environment's own tools, in a production image no more than before.
OF_THE_ENVIRONMENT = ("pip", "setuptools")


def carried(python: Path) -> tuple[int, int]:
    """Return packages and bytes of an environment, without compiled files."""
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    size = sum(
        path.stat().st_size
        for path in packages.rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and not path.relative_to(packages).parts[0].startswith(OF_THE_ENVIRONMENT)
    )
    names = [path.name for path in packages.glob("*.dist-info")]
    return sum(not name.startswith(OF_THE_ENVIRONMENT) for name in names), size


async def run() -> None:
    """Install each into a new environment and measure it."""
    ours = Peer("nvcf-worker", (f"nvcf-worker @ file://{ROOT}",), "", "/")
    sizes: dict[str, int] = {}
    for server in (ours, *PEERS):
        try:
            python = await python_of(server, afresh=server is ours)
        except Unavailable as error:
            print(f"{server.name}: left out, {error}")
            continue
        number, size = await asyncio.to_thread(carried, python)
        sizes[server.name] = size
        share = size / sizes[ours.name] if ours.name in sizes else 0.0
        print(f"{server.name}: {number} packages, {size / MIB:.0f} MiB, {share:.2f} times the bare worker")
