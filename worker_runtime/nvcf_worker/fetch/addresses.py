"""Which addresses a download may connect to."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver


class AddressRefused(OSError):
    """A download leads to an address that it may not connect to."""


def check_address(text: str, *, allow_private: bool) -> None:
    """Raise AddressRefused for an IP address that is closed; other text is a name and passes.

    Link-local addresses, where clouds keep credentials of machines, are always closed.
    """
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified:
        raise AddressRefused(f"{text} is no address to download from")
    if not allow_private and not mapped.is_global:
        raise AddressRefused(f"a redirect leads to the private address {text}")


class GuardedResolver(AbstractResolver):
    """Resolves names, and leaves out closed addresses. `allow_private` is set for each connection anew."""

    def __init__(self, *, allow_private: bool) -> None:
        self.allow_private = allow_private
        self._inner = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the open addresses of a name. Raises AddressRefused if there is none."""
        found: list[ResolveResult] = []
        refused: AddressRefused | None = None
        for each in await self._inner.resolve(host, port, family):
            try:
                check_address(each["host"], allow_private=self.allow_private)
                found.append(each)
            except AddressRefused as error:
                refused = error
        if not found and refused is not None:
            raise refused
        return found

    async def close(self) -> None:
        """Release what resolving needs."""
        await self._inner.close()


def host_of(url: Any) -> str:
    """Return host and port of a URL as registries are called, without the scheme's own port."""
    return f"{url.host}:{url.port}" if url.explicit_port is not None else str(url.host)
