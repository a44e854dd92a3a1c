"""`nvcf up` registers its clusters once, keeps their keys, and forgets those that are no longer wanted."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from nvcf_cli.api import Target
from nvcf_cli.errors import CliError
from nvcf_cli.local.clusters import register_clusters
from nvcf_cli.local.platform import keep_worker_port
from nvcf_cli.local.state import Installation

ROUTE = "/v1/accounts/one/clusters"


@dataclass
class AdminRoutes:
    """A gateway's routes for administrators of clusters (protocol.md, section 6.5)."""

    ids: dict[str, str] = field(default_factory=dict)
    keys: int = 0
    url: str = ""

    def key(self) -> str:
        self.keys += 1
        return f"key-{self.keys}"

    async def quotas(self, request: web.Request) -> web.Response:
        return web.json_response({"account": "one", "quotas": []})

    async def register(self, request: web.Request) -> web.Response:
        name = (await request.json())["clusterName"]
        if name in self.ids:
            assert request.query["ifExists"] == "return"
            return web.json_response({"clusterId": self.ids[name], "clusterGroupId": "g"})
        self.ids[name] = f"id-{self.keys}"
        return web.json_response(
            {"clusterId": self.ids[name], "clusterGroupId": "g", "clusterKey": self.key()}
        )

    async def rotate(self, request: web.Request) -> web.Response:
        return web.json_response({"clusterKey": self.key()})

    async def delete(self, request: web.Request) -> web.Response:
        gone = [name for name, each in self.ids.items() if each == request.match_info["id"]]
        for name in gone:
            del self.ids[name]
        return web.json_response({}, status=200 if gone else 404)


@contextlib.asynccontextmanager
async def admin_routes() -> AsyncIterator[AdminRoutes]:
    routes, app = AdminRoutes(), web.Application()
    app.router.add_get("/v2/nvcf/quotas", routes.quotas)
    app.router.add_post(ROUTE, routes.register)
    app.router.add_post(ROUTE + "/{id}/rotate", routes.rotate)
    app.router.add_delete(ROUTE + "/{id}", routes.delete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    routes.url = f"http://{host}:{port}"
    try:
        yield routes
    finally:
        await runner.cleanup()


async def test_registering_again_changes_nothing(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    async with admin_routes() as routes:
        target = Target(routes.url, "admin")
        first = await register_clusters(here, target, ["local-1", "local-2"])
        keys = [here.agent_key(name).read_text() for name in first]
        assert await register_clusters(here, target, ["local-1", "local-2"]) == first
    assert [here.agent_key(name).read_text() for name in first] == keys == ["key-1\n", "key-2\n"]
    assert here.agent_key("local-1").stat().st_mode & 0o777 == 0o600


async def test_a_lost_key_is_replaced(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    async with admin_routes() as routes:
        target = Target(routes.url, "admin")
        await register_clusters(here, target, ["local"])
        here.agent_key("local").unlink()
        await register_clusters(here, target, ["local"])
        assert here.agent_key("local").read_text() == "key-2\n"


async def test_a_key_of_an_earlier_release_is_replaced_by_the_clusters_own(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    here.agent_key("local").write_text("nvcf-old\n")
    async with admin_routes() as routes:
        await register_clusters(here, Target(routes.url, "admin"), ["local"])
    assert here.agent_key("local").read_text() == "key-1\n"


async def test_a_cluster_that_is_gone_at_the_gateway_is_registered_anew(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    async with admin_routes() as routes:
        target = Target(routes.url, "admin")
        before = await register_clusters(here, target, ["local"])
        routes.ids.clear()
        assert await register_clusters(here, target, ["local"]) != before
        assert here.agent_key("local").read_text() == "key-2\n"


async def test_what_is_no_longer_wanted_is_deleted_and_what_others_registered_stays(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    async with admin_routes() as routes:
        target = Target(routes.url, "admin")
        routes.ids["somebody's"] = "other"
        await register_clusters(here, target, ["local-1", "local-2"])
        ids = await register_clusters(here, target, ["local"])
        assert routes.ids == {"somebody's": "other", **ids}
        # It is gone there already: nothing to complain about.
        routes.ids.pop("local")
        await register_clusters(here, target, ["local-1"])
        assert sorted(routes.ids) == ["local-1", "somebody's"]


async def test_registered_anew_a_cluster_is_another_one(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    async with admin_routes() as routes:
        target = Target(routes.url, "admin")
        before = await register_clusters(here, target, ["local"])
        after = await register_clusters(here, target, ["local"], anew=True)
        assert after != before
        assert routes.ids == after
        assert here.agent_key("local").read_text() == "key-2\n"


def test_instances_find_the_gateway_at_the_same_port_after_a_restart(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    port, moved = keep_worker_port(here)
    assert not moved
    assert keep_worker_port(here) == (port, False)
    with socket.create_server(("127.0.0.1", port)):
        other, moved = keep_worker_port(here)
        assert (other != port, moved) == (True, True)
    assert keep_worker_port(here) == (other, False)
    here.worker_port.write_text("nonsense")
    assert keep_worker_port(here)[1] is False


async def test_a_gateway_that_refuses_is_told(tmp_path: Path) -> None:
    async with admin_routes() as routes:
        with pytest.raises(CliError, match="HTTP 404"):
            await register_clusters(Installation(tmp_path), Target(routes.url + "/x", "admin"), ["local"])
