"""Records of instances and clusters, as agents write them: for tests in which no agent runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from nvcf_proto.compute import CLUSTERS_BUCKET, Cluster
from nvcf_proto.ids import new_id
from nvcf_proto.models import INSTANCES_BUCKET, Instance, InstanceState
from tests.support.platform.gateways import Platform, Version


async def write_record(platform: Platform, bucket: str, key: str, record: bytes | None) -> None:
    """Write a record into its bucket; None removes it."""
    client = await platform.broker_client()
    try:
        headers = {"KV-Operation": "DEL"} if record is None else None
        await client.jetstream().publish(f"$KV.{bucket}.{key}", record or b"", headers=headers)
    finally:
        await client.close()


async def add_instance(platform: Platform, version: Version, state: InstanceState, **fields: Any) -> Instance:
    """Write the record of an instance."""
    now = time.time()
    made = Instance(
        new_id(),
        version.function_id,
        version.id,
        fields.pop("cluster_id", "local"),
        state,
        now,
        now,
        **fields,
    )
    await write_record(platform, INSTANCES_BUCKET, made.key, made.to_json())
    return made


@contextlib.asynccontextmanager
async def known_clusters(platform: Platform, *clusters: Cluster) -> AsyncIterator[None]:
    """Let gateways know these clusters within the context."""
    for each in clusters:
        await write_record(platform, CLUSTERS_BUCKET, each.id, each.to_json())
    try:
        yield
    finally:
        for each in clusters:
            await write_record(platform, CLUSTERS_BUCKET, each.id, None)
