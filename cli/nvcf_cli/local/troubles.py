"""What does not work on a platform, as its gateway and `nvcf up` report it."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from nvcf_cli.api import Api, Target
from nvcf_cli.errors import CliError
from nvcf_cli.local.state import PlatformState

_PATIENCE_SECONDS = 3.0

Trouble = dict[str, Any]


def troubles_of(state: PlatformState) -> list[Trouble]:
    """Return what does not work: objects with `part`, `detail` and `since` (None if that is unknown)."""
    processes = [
        {"part": name, "detail": f"the process is {child.state}", "since": None}
        for name, child in state.children.items()
        if child.state != "running"
    ]
    return processes + asyncio.run(_ask(state.url))


async def _ask(url: str) -> list[Trouble]:
    try:
        async with (
            Api(Target(url, "")) as api,
            api.request("GET", "/health/ready", timeout=_PATIENCE_SECONDS) as response,
        ):
            return _troubles(json.loads(await response.read()))
    except (CliError, ValueError) as error:
        return [{"part": "gateway", "detail": str(error), "since": None}]


def _troubles(document: Any) -> list[Trouble]:
    found = document.get("troubles") if isinstance(document, Mapping) else None
    if not isinstance(found, list):
        raise ValueError("the gateway does not answer like this platform")
    return [dict(each) for each in found if isinstance(each, Mapping)]
