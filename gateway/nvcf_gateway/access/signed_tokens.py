"""Tokens with a signature instead of a record: signed URLs, and tokens of the dashboard. Nothing is stored.

Both carry an expiry time and an HMAC over all they say, with keys derived from the installation's signing
keys. The newest key signs, every key of the ring verifies. Times are Unix seconds and passed in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Literal

from nvcf_gateway.errors import GatewayError, HttpProblem

Keys = Callable[[], tuple[bytes, ...]]
UrlPurpose = Literal["result-put", "result-get", "asset-put", "asset-get"]

_TOKEN = re.compile(r"nvcf-(ticket|session)-([0-9a-f]{12})-([0-9]{10,12})-[0-9a-f]{16}-([A-Za-z0-9_-]{43})")


def derive_key(secret: bytes) -> bytes:
    """Derive a key for these tokens from the installation's secret; it is good for nothing else."""
    return hashlib.blake2b(secret, digest_size=32, person=b"nvcf-links").digest()


class SignedUrls:
    """URLs for uploads and downloads without an Authorization header.

    The contract hands out URLs that a plain HTTP client can use (`largeResponseUrl`, asset references, the
    `Location` of a 302). Each is good for one object and one purpose, until a fixed time.
    """

    def __init__(self, keys: Keys, base_url: Callable[[], str]) -> None:
        self._keys = keys
        self._base_url = base_url

    def make(self, path: str, purpose: UrlPurpose, name: str, *, expires_at: float) -> str:
        """Return a URL of `path` for one purpose on the object `name`."""
        until = str(int(expires_at))
        signature = _sign_url(self._keys()[0], purpose, name, until)
        return f"{self._base_url()}{path}?until={until}&seal={signature}"

    def check(self, query: Mapping[str, str], purpose: UrlPurpose, name: str, now: float) -> None:
        """Raise HttpProblem 403 unless the URL was made for this purpose and object and has not expired."""
        until, signature = query.get("until", ""), query.get("seal", "")
        genuine = any(
            hmac.compare_digest(signature.encode(), _sign_url(key, purpose, name, until).encode())
            for key in self._keys()
        )
        if not genuine or not until.isdigit():
            raise HttpProblem(403, "this link is not valid")
        if now > int(until):
            raise HttpProblem(403, "this link has expired: ask for a new one")


def _sign_url(key: bytes, purpose: str, name: str, until: str) -> str:
    return hmac.digest(key, f"{purpose}\0{name}\0{until}".encode(), "sha256").hex()


class TokenKind(StrEnum):
    """The two tokens of the dashboard.

    A **ticket** lives for two minutes and can only be exchanged for a session; it is part of the page's
    address. A **session** can read for twelve hours.
    """

    TICKET = "ticket"
    SESSION = "session"


LIFE_SECONDS: Mapping[TokenKind, float] = {TokenKind.TICKET: 120.0, TokenKind.SESSION: 12 * 3600.0}


class InvalidDashboardToken(GatewayError):
    """The text is not a ticket or session of this installation, or it has expired."""


class DashboardTokens:
    """Read access on behalf of an API key for a limited time.

    The form is `nvcf-KIND-KEYID-UNTIL-NONCE-SIGNATURE`. UNTIL is a Unix time in whole seconds, NONCE random,
    SIGNATURE an HMAC-SHA-256 (base64url) over the rest. A token can only list, and it is void when its API
    key is.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def make(self, kind: TokenKind, key_id: str, now: float) -> tuple[str, float]:
        """Return a token on behalf of the API key `key_id`, and when it expires."""
        until = int(now + LIFE_SECONDS[kind])
        # A ticket is good once, so no two may be the same.
        signed = f"nvcf-{kind}-{key_id}-{until}-{secrets.token_hex(8)}"
        return f"{signed}-{_sign_token(self._keys()[0], signed)}", float(until)

    def read(self, text: str, kind: TokenKind, now: float) -> str:
        """Return the id of the API key behind a token. Raises InvalidDashboardToken."""
        match = _TOKEN.fullmatch(text)
        if match is None or match[1] != kind:
            raise InvalidDashboardToken(f"not a {kind}")
        signed = text[: -len(match[4]) - 1]
        if not any(hmac.compare_digest(_sign_token(key, signed), match[4]) for key in self._keys()):
            raise InvalidDashboardToken(f"the {kind} is not valid")
        if now > int(match[3]):
            raise InvalidDashboardToken(f"the {kind} has expired: ask for a new one")
        return match[2]


def is_dashboard_token(text: str) -> bool:
    """Whether a bearer token has the form of a ticket or session, not of an API key."""
    return text.startswith(("nvcf-session-", "nvcf-ticket-"))


def _sign_token(key: bytes, signed: str) -> str:
    # The prefix separates these signatures from those of URLs, which use the same keys.
    digest = hmac.new(key, f"dashboard\0{signed}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
