"""Links that carry their own permission: uploads and downloads without an Authorization header.

The contract hands out URLs that a bare HTTP client can use (`largeResponseUrl`, asset references, the
`Location` of a 302). Each names one object and one purpose, ends at a fixed time and is sealed with a MAC
over all of it, keyed by the installation's signing key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Literal

from nvcf_gateway.errors import HttpProblem

Purpose = Literal["result-put", "result-get", "asset-put", "asset-get"]


def derive_key(secret: bytes) -> bytes:
    """A key for links out of the installation's secret, of no use for anything else."""
    return hashlib.blake2b(secret, digest_size=32, person=b"nvcf-links").digest()


class Links:
    """Makes and checks links. Times are Unix seconds and passed in."""

    def __init__(self, keys: Callable[[], tuple[bytes, ...]], base_url: Callable[[], str]) -> None:
        self._keys = keys
        self._base_url = base_url

    def make(self, path: str, purpose: Purpose, name: str, *, expires_at: float) -> str:
        """URL of `path` for one purpose on the object `name`."""
        until = str(int(expires_at))
        return f"{self._base_url()}{path}?until={until}&seal={_seal(self._keys()[0], purpose, name, until)}"

    def check(self, query: Mapping[str, str], purpose: Purpose, name: str, now: float) -> None:
        """Raise HttpProblem 403 unless the link was made here for this purpose and object and is not over."""
        until, seal = query.get("until", ""), query.get("seal", "")
        genuine = any(
            hmac.compare_digest(seal.encode(), _seal(key, purpose, name, until).encode())
            for key in self._keys()
        )
        if not genuine or not until.isdigit():
            raise HttpProblem(403, "this link is not valid")
        if now > int(until):
            raise HttpProblem(403, "this link has expired: ask for a new one")


def _seal(key: bytes, purpose: str, name: str, until: str) -> str:
    return hmac.new(key, f"{purpose}\0{name}\0{until}".encode(), hashlib.sha256).hexdigest()
