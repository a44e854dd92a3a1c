"""Registration of a cluster by the chart's Job, against a real gateway."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from nvcf_agent.errors import ControlPlaneError
from nvcf_agent.kubernetes.registration import Administration, parse_arguments, register, registration
from nvcf_broker.server import LocalBroker
from tests.support.platform.gateways import Platform, control_flags, running_platform

COMMON = ("--icms", "http://unused", "--admin-key", "key", "--secret", "s", "--namespace", "n")


def body(*options: str) -> dict[str, object]:
    return registration(parse_arguments([*COMMON, "--name", "gpu-a", *options]))


def administration(platform: Platform) -> Administration:
    return Administration(platform.session, platform.gateway.url + "/", platform.keys["admin"])


async def shown(platform: Platform, cluster_id: str) -> dict[str, object]:
    return await platform.call("GET", f"/v1/accounts/account-one/clusters/{cluster_id}")


async def test_a_cluster_is_registered_once(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path / "broker")
    await broker.start()
    async with running_platform(tmp_path, flags=control_flags(broker), broker=broker) as platform:
        there = administration(platform)
        first = await register(there, body("--attribute", "storage=fast"), {})
        assert set(first) == {"clusterId", "key"}
        assert (await shown(platform, first["clusterId"]))["attributes"] == {"storage": "fast"}
        # An upgrade changes what was said, and neither id nor key.
        again = await register(there, body("--group", "onprem", "--account", "account-one"), first)
        assert again == first
        changed = await shown(platform, first["clusterId"])
        assert changed["clusterGroupName"] == "onprem"
        assert changed["authorizedNCAIds"] == ["account-one"]
        # The Secret was lost: the cluster stays the same and gets a new key.
        lost = await register(there, body(), {})
        assert lost["clusterId"] == first["clusterId"]
        assert lost["key"] != first["key"]
        # It was deleted: the same name is another cluster now.
        await platform.call("DELETE", f"/v1/accounts/account-one/clusters/{first['clusterId']}")
        renewed = await register(there, body(), lost)
        assert renewed["clusterId"] != first["clusterId"]


async def test_a_key_without_the_right_is_named(tmp_path: Path) -> None:
    async with running_platform(tmp_path) as platform:
        with pytest.raises(ControlPlaneError, match="quotas: 401"):
            await register(
                Administration(platform.session, platform.gateway.url, "nvcf-nonsense"), body(), {}
            )


async def test_an_address_where_nobody_listens_is_named() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ControlPlaneError, match="GET http://127"):
            await register(Administration(session, "http://127.0.0.1:1", "k"), body(), {})
