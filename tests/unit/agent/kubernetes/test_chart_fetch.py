"""Charts from registries: logins, redirects, sizes, and addresses that the agent must not call."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from nvcf_agent.kubernetes.helm.errors import ChartError, ChartPullError, ChartUnavailable
from nvcf_agent.kubernetes.helm.fetch import (
    Fetcher,
    FetchSettings,
    parse_logins,
    parse_source,
)
from nvcf_agent.kubernetes.helm.public_hosts import check_public
from tests.support.charts import ChartRegistry, chart_registry, pack

CHART = pack({"values.yaml": "a: 1\n"})
LOGIN = base64.b64encode(b"user:word").decode()


def fetcher(registry: ChartRegistry, **settings: Any) -> Fetcher:
    """A fetcher that may use the test's registry, which is on this machine and has no certificate."""
    hosts = frozenset((registry.host,))
    return Fetcher(FetchSettings(private=hosts, plain=hosts, **settings))


async def test_a_chart_comes_from_an_oci_registry_and_as_a_file() -> None:
    async with chart_registry({"web:0.1.0": CHART, "plus:1.0.0_2": CHART}) as registry:
        for url in (registry.url("web:0.1.0"), registry.file_url("web:0.1.0"), registry.url("plus:1.0.0+2")):
            assert await fetcher(registry).fetch(url, {}) == CHART


async def test_logins_are_sent_to_their_host_only() -> None:
    async with chart_registry({"web:0.1.0": CHART}, LOGIN) as registry:
        for url in (registry.url("web:0.1.0"), registry.file_url("web:0.1.0")):
            assert await fetcher(registry).fetch(url, {registry.host: LOGIN}) == CHART
            with pytest.raises(ChartPullError, match="refuses the chart: add or renew the account's login"):
                await fetcher(registry).fetch(url, {"other.example": LOGIN})
        registry.seen.clear()
        await fetcher(registry).fetch(registry.url("web:0.1.0"), {registry.host: LOGIN})
        assert [kind for _, kind in registry.seen] == ["", "Basic", "Bearer", "Bearer"]


async def test_a_redirect_to_another_host_gets_no_login() -> None:
    async with (
        chart_registry({"web:0.1.0": CHART}, LOGIN) as registry,
        chart_registry({"web:0.1.0": CHART}) as store,
    ):
        registry.blobs_at = f"http://{store.host}"
        hosts = frozenset((registry.host, store.host))
        own = Fetcher(FetchSettings(private=hosts, plain=hosts))
        assert await own.fetch(registry.url("web:0.1.0"), {registry.host: LOGIN}) == CHART
        assert [kind for _, kind in store.seen] == [""]


async def test_what_arrives_damaged_or_too_large_is_not_used() -> None:
    async with chart_registry({"web:0.1.0": CHART}) as registry:
        with pytest.raises(ChartError, match="more than 0 MiB"):
            await fetcher(registry, most_bytes=10).fetch(registry.file_url("web:0.1.0"), {})
        with pytest.raises(ChartError, match="more than 0 MiB"):
            await fetcher(registry, most_bytes=10).fetch(registry.url("web:0.1.0"), {})
        registry.damaged = True
        with pytest.raises(ChartUnavailable, match="arrived damaged"):
            await fetcher(registry).fetch(registry.url("web:0.1.0"), {})
        with pytest.raises(ChartPullError, match="there is no chart"):
            await fetcher(registry).fetch(registry.url("web:0.2.0"), {})


async def test_the_agent_calls_no_address_inside_and_no_plain_http() -> None:
    async with chart_registry({"web:0.1.0": CHART}) as registry:
        host = frozenset((registry.host,))
        port = registry.host.partition(":")[2]
        with pytest.raises(ChartPullError, match=r"127\.0\.0\.1, which is not public"):
            await Fetcher(FetchSettings(plain=host)).fetch(registry.url("web:0.1.0"), {})
        with pytest.raises(ChartPullError, match="does not use https"):
            await Fetcher(FetchSettings(private=host)).fetch(registry.file_url("web:0.1.0"), {})
        # A name that leads inside is found out when it is resolved.
        named = FetchSettings(plain=frozenset((f"localhost:{port}",)))
        with pytest.raises(ChartPullError, match=r"localhost has the address .* not public"):
            await Fetcher(named).fetch(f"http://localhost:{port}/web-0.1.0.tgz", {})
        # In other digits a name is an address, too: aiohttp makes one of it, and resolves nothing.
        for name in ("１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1"):  # noqa: RUF001
            other = Fetcher(FetchSettings(plain=frozenset((f"{name}:{port}",))))
            with pytest.raises(ChartPullError, match=r"127\.0\.0\.1, which is not public"):
                await other.fetch(f"http://{name}:{port}/web-0.1.0.tgz", {})
        assert not registry.seen


async def test_a_private_host_with_a_port_is_no_private_host_with_another() -> None:
    async with chart_registry({"web:0.1.0": CHART}) as registry:
        port = registry.host.partition(":")[2]
        own = frozenset((f"localhost:{port}",))
        url = f"http://localhost:{port}/web-0.1.0.tgz"
        assert await Fetcher(FetchSettings(private=own, plain=own)).fetch(url, {}) == CHART
        other = FetchSettings(private=frozenset(("localhost:1",)), plain=own)
        with pytest.raises(ChartPullError, match=r"localhost has the address .* not public"):
            await Fetcher(other).fetch(url, {})


async def test_what_a_registry_packs_once_more_is_not_unpacked() -> None:
    bomb = bytes(2**20)
    async with chart_registry({"web:0.1.0": bomb}) as registry:
        registry.gzipped = True
        own = fetcher(registry, most_bytes=2**16)
        assert len(await own.fetch(registry.file_url("web:0.1.0"), {})) < 2**16


async def test_a_redirect_does_not_lead_inside_either() -> None:
    async with chart_registry({"web:0.1.0": CHART}) as registry:
        registry.blobs_at = "https://169.254.169.254"
        with pytest.raises(ChartPullError, match=r"169\.254\.169\.254"):
            await fetcher(registry).fetch(registry.url("web:0.1.0"), {})
        registry.blobs_at = "https://[no-address"
        with pytest.raises(ChartUnavailable, match="cannot fetch"):
            await fetcher(registry).fetch(registry.url("web:0.1.0"), {})
        registry.blobs_at = f"http://{registry.host}"
        with pytest.raises(ChartPullError, match="redirected too often"):
            await fetcher(registry).fetch(registry.url("web:0.1.0"), {})


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "127.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "fe80::1%eth0", "fd00::1", "0.0.0.1",
     "::ffff:10.0.0.1", "64:ff9b::a00:1", "224.0.0.1", "ff02::1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    with pytest.raises(ChartPullError, match="not public"):
        check_public("example.com", address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1"])
def test_addresses_that_are_public(address: str) -> None:
    check_public("example.com", address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.com/a-1.tgz", "use https"),
        ("https://example.com/a", "path ends with"),
        ("oci://example.com/a", "names no version"),
        ("oci://user:word@example.com/a:1", "is no URL"),
        ("https:///a.tgz", "is no URL"),
        ("https://[::1/a.tgz", "is no URL"),
        ("words", "is no URL"),
    ],
)
def test_urls_that_name_no_chart(url: str, reason: str) -> None:
    with pytest.raises(ChartError, match=reason):
        parse_source(url)


def test_logins_come_in_the_form_of_docker() -> None:
    def encoded(value: object) -> str:
        return base64.b64encode(json.dumps(value).encode()).decode()

    two = {"k8sSecrets": [{"auths": {"a.example": {"auth": "x"}}}, {"auths": {"b.example": {"auth": "y"}}}]}
    assert parse_logins(encoded(two)) == {"a.example": "x", "b.example": "y"}
    assert parse_logins(None) == parse_logins("") == parse_logins(encoded({"k8sSecrets": []})) == {}
    for broken in ("!", encoded([]), encoded({"k8sSecrets": [{"auths": {"a": {}}}]})):
        with pytest.raises(ChartError, match="HELM_REGISTRIES_CREDENTIALS"):
            parse_logins(broken)
