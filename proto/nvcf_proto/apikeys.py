"""The text form of API keys: `nvcf-KEYID-SECRET`, 12 hex digits and 43 base64url characters (256 bits)."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets

from nvcf_proto.errors import InvalidToken

_KEY = re.compile(r"nvcf-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")


def new_api_key() -> str:
    """A fresh random key."""
    secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    return f"nvcf-{secrets.token_hex(6)}-{secret}"


def api_key_id(key: str) -> str:
    """The public part of a key. Raises InvalidToken when the text is no key."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise InvalidToken("not an API key")
    return match[1]


def hash_api_key(key: str) -> str:
    """What is stored of a key: SHA-256, hex. A fast hash is enough for 256 random bits."""
    return hashlib.sha256(key.encode()).hexdigest()
