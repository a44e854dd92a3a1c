"""Where a region's streams and buckets live in a broker cluster, and in how many copies.

See protocol.md, section 2.3.
"""

from __future__ import annotations

from typing import Any

from nats.aio.client import Client

from nvcf_gateway.config import GatewayConfig


def placement_tag(client: Client, config: GatewayConfig, region: str) -> str | None:
    """Return the tag `KEY:R` of a region's brokers; None without a cluster, which has no placement."""
    clustered = bool(client._server_info.get("cluster"))
    return f"{config.placement_tag_key}:{region}" if clustered else None


def bucket_options(client: Client, config: GatewayConfig, region: str) -> dict[str, Any]:
    """Return the options with which the object buckets of a region are created."""
    return {"replicas": config.replicas, "placement_tag": placement_tag(client, config, region)}
