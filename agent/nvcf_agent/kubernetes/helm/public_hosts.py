"""Which hosts the agent may call at the wish of a user: those of the internet, and private ones by name."""

import ipaddress
import socket
from collections.abc import Collection

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from nvcf_agent.kubernetes.helm.errors import ChartPullError

# Addresses of the other Internet protocol that lead to those of IPv4.
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")


class PublicResolver(AbstractResolver):
    """Resolves names, and refuses addresses that are not public."""

    def __init__(self, private: frozenset[str]) -> None:
        self._private = {each.lower() for each in private}
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises `ChartPullError` if one is not public."""
        found = await self._inner.resolve(host, port, family)
        if host not in self._private and f"{host}:{port}" not in self._private:
            for each in found:
                check_public(host, each["host"])
        return found

    async def close(self) -> None:
        """Close the resolver."""
        await self._inner.close()


def check_literal(private: Collection[str], netloc: str, host: str) -> None:
    """Raise `ChartPullError` if a URL has an address that is not public in place of a name. Pure."""
    if netloc in private or host in private:
        return
    try:
        # A name is checked when it is resolved.
        ipaddress.ip_address(host)
    except ValueError:
        return
    check_public(host, host)


def check_public(host: str, address: str) -> None:
    """Raise `ChartPullError` if an address of a host is not one of the public internet. Pure."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(ip, "ipv4_mapped", None) or ip
    if not inner.is_global or inner.is_multicast or (ip.version == 6 and ip in _TRANSLATED):
        raise ChartPullError(
            f"{host} has the address {address}, which is not public: the operator can name the host in the "
            "agent's private chart hosts"
        )
