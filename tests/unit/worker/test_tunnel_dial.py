"""Reading a proxyURI."""

from __future__ import annotations

import pytest

from nvcf_worker.errors import TunnelError
from nvcf_worker.sessions.dial import ProxyAddress, proxy_address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://proxy/v1/proxy", ProxyAddress("proxy", 80, "/v1/proxy", "proxy", False)),
        ("http://proxy:8001", ProxyAddress("proxy", 8001, "/v1/proxy", "proxy:8001", False)),
        ("https://proxy/other?a=1", ProxyAddress("proxy", 443, "/other?a=1", "proxy", True)),
        ("http://[::1]:81/", ProxyAddress("::1", 81, "/v1/proxy", "[::1]:81", False)),
        ("proxy:81/v1/proxy", ProxyAddress("proxy", 81, "/v1/proxy", "proxy:81", False)),
        ("http://user@proxy/", ProxyAddress("proxy", 80, "/v1/proxy", "proxy", False)),
    ],
)
def test_addresses(url: str, expected: ProxyAddress) -> None:
    assert proxy_address(url) == expected


@pytest.mark.parametrize("url", ["", "ftp://proxy", "http://", "http://proxy:port/"])
def test_what_is_no_address_is_final(url: str) -> None:
    with pytest.raises(TunnelError) as raised:
        proxy_address(url)
    assert raised.value.final
