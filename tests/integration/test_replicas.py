"""A broker cluster with three copies of everything: the disk budget counts every copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvcf_broker.jetstream import JetStream
from tests.integration.test_regions import call
from tests.support.platform.broker_cluster import running_cluster

pytestmark = [pytest.mark.xdist_group("regions")]


async def test_every_store_fits_the_broker_account_with_three_copies(tmp_path: Path) -> None:
    """Also those that are created at their first use: of kept bodies and of assets."""
    async with running_cluster(tmp_path, [("local",)] * 3, "--replicas", "3") as (_, platform):
        gateway = platform.gateway
        version = await platform.deployed_version()
        body = {"text": "z" * 100_000}
        status, headers, _ = await call(platform, gateway, "POST", version.pexec, body, NVCF_POLL_SECONDS="1")
        assert (status, headers["nvcf-status"]) == (202, "pending-evaluation")
        status, _, _ = await call(platform, gateway, "POST", "/v2/nvcf/assets", {"contentType": "text/plain"})
        assert status == 200
        client = await platform.broker_client()
        try:
            account = await JetStream(client).account_info()
            streams = {each.name: each.config for each in await JetStream(client).streams(">")}
        finally:
            await client.close()
        assert {"OBJ_nvcf_bodies_local", "OBJ_nvcf_assets_local"} <= streams.keys()
        bounds = [max(0, each["max_bytes"]) * each["num_replicas"] for each in streams.values()]
        assert account.limit is not None
        assert sum(bounds) <= account.limit
