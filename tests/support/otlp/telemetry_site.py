"""An agent's site whose functions send their telemetry to endpoints of their accounts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from nvcf_broker.kv import KvMirror
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    TELEMETRIES_BUCKET,
    FunctionVersion,
    Instance,
    Telemetries,
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetryType,
)
from tests.support.platform.agent_site import HEALTH, STEADY
from tests.support.platform.agents import Site

DUMP = "import json\n(shared / 'seen').write_text(json.dumps(dict(os.environ)))\n"


async def add_endpoint(site: Site, address: str, **changes: Any) -> TelemetryEndpoint:
    """Store an endpoint of the site's account as the gateway does."""
    made = TelemetryEndpoint(
        id=new_id(),
        name="backend",
        nca_id="account",
        endpoint=address,
        protocol=TelemetryProtocol.GRPC,
        provider=TelemetryProvider.OTEL_COLLECTOR,
        types=tuple(TelemetryType),
        created_at=0.0,
    )
    made = made.replace(**changes)
    bucket = KvMirror(site.client, TELEMETRIES_BUCKET, TelemetryEndpoint.from_json, TelemetryEndpoint.to_json)
    async with bucket:
        await bucket.ready()
        await bucket.put(made.id, made)
    return made


async def watched_version(site: Site, endpoint: TelemetryEndpoint, script: str = "") -> FunctionVersion:
    """Create a version whose telemetry goes to the endpoint. Its instances write a file `seen`."""
    version = await site.version(script or HEALTH + DUMP + STEADY)
    chosen = version.replace(telemetries=Telemetries(endpoint.id, endpoint.id, endpoint.id))
    await site.versions.put(chosen.id, chosen)
    return chosen


def home(site: Site, instance: Instance) -> Path:
    """Return the folder of an instance."""
    return site.data / "instances" / instance.id


async def environment(site: Site, instance: Instance) -> dict[str, str]:
    """Return the environment of the instance's process."""
    text = await asyncio.to_thread((home(site, instance) / "shared" / "seen").read_text)
    return dict(json.loads(text))
