"""Tickets and sessions: reading for a while in the name of an API key, without having the key.

`nvcf-PURPOSE-KEYID-UNTIL-SEAL`. UNTIL is a Unix time in whole seconds, SEAL an HMAC-SHA-256 (base64url) over
the rest, keyed like links by the installation's signing key. A **ticket** is good for two minutes and for
nothing but getting a session; it is what stands in the page's address. A **session** reads for twelve hours.
Neither can do more than list, neither outlives its API key, nothing of them is stored.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from enum import StrEnum

from nvcf_gateway.errors import GatewayError

_TEXT = re.compile(r"nvcf-(ticket|session)-([0-9a-f]{12})-([0-9]{10,12})-([A-Za-z0-9_-]{43})")


class Purpose(StrEnum):
    """What a text is good for."""

    TICKET = "ticket"
    SESSION = "session"


LIFE_SECONDS: Mapping[Purpose, float] = {Purpose.TICKET: 120.0, Purpose.SESSION: 12 * 3600.0}


class InvalidTicket(GatewayError):
    """No ticket or session of this installation, or one that is over."""


class Seals:
    """Makes and checks tickets and sessions. Times are Unix seconds and passed in."""

    def __init__(self, keys: Callable[[], tuple[bytes, ...]]) -> None:
        self._keys = keys

    def make(self, purpose: Purpose, key_id: str, now: float) -> tuple[str, float]:
        """A text in the name of the API key `key_id`, and when it is over."""
        until = int(now + LIFE_SECONDS[purpose])
        rest = f"nvcf-{purpose}-{key_id}-{until}"
        return f"{rest}-{_seal(self._keys()[0], rest)}", float(until)

    def read(self, text: str, purpose: Purpose, now: float) -> str:
        """The id of the API key in whose name the text was made. Raises InvalidTicket."""
        match = _TEXT.fullmatch(text)
        if match is None or match[1] != purpose:
            raise InvalidTicket(f"not a {purpose}")
        rest = text[: -len(match[4]) - 1]
        if not any(hmac.compare_digest(_seal(key, rest), match[4]) for key in self._keys()):
            raise InvalidTicket(f"the {purpose} is not valid")
        if now > int(match[3]):
            raise InvalidTicket(f"the {purpose} is over: ask for a new one")
        return match[2]


def looks_sealed(text: str) -> bool:
    """Whether a bearer token is a ticket or a session rather than an API key."""
    return text.startswith(("nvcf-session-", "nvcf-ticket-"))


def _seal(key: bytes, rest: str) -> str:
    # The prefix keeps it apart from links, which the same keys seal.
    digest = hmac.new(key, f"dashboard\0{rest}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
