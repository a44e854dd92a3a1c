"""Where a chart or an image is, by its address. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from nvcf_proto.errors import ContractError


class InvalidSource(ContractError):
    """The address leads to no chart; the text says what one looks like."""


@dataclass(frozen=True)
class Source:
    """Where a chart or image is. `repository` and `reference` are those of a registry, empty for a file."""

    url: str
    host: str
    repository: str = ""
    reference: str = ""
    what: str = "chart"


def chart_source(url: str) -> Source:
    """Return where a chart is. Raises InvalidSource."""
    try:
        parts = urlsplit(url)
        host = parts.netloc
        if parts.port == 0 or "@" in host or not parts.hostname:
            raise ValueError
    except ValueError:
        raise InvalidSource(f"{url[:200]!r} is no URL: use https://… or oci://…") from None
    if parts.scheme in ("https", "http"):
        if not parts.path.endswith(".tgz"):
            raise InvalidSource(f"{url[:200]!r} is no packed chart: its path ends with NAME-VERSION.tgz")
        return Source(url, host)
    if parts.scheme != "oci":
        raise InvalidSource(f"{url[:200]!r}: use https://… or oci://…")
    path, at, digest = parts.path.strip("/").partition("@")
    repository, _, tag = path.partition(":")
    reference = digest if at else tag
    if not repository or not reference:
        raise InvalidSource(f"{url[:200]!r} names no version: add :VERSION")
    # Tags have no "+": helm writes "_" for it.
    return Source(url, host, repository, reference.replace("+", "_"))
