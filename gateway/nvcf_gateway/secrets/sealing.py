"""Seal and open values with AES-256-GCM. Pure, but for the random nonce.

A sealed value is text: `1.KEYID.DATA`, DATA the base64url of a nonce of 12 bytes and what AES-GCM returns. It
opens only with the same key and for the same context, and only if no bit of it was changed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nvcf_gateway.errors import GatewayError

KEY_BYTES = 32
_FORM = "1"
_NONCE_BYTES = 12


class Unsealable(GatewayError):
    """A sealed value cannot be opened; the text says why and never has a part of the value."""


class UnknownKey(Unsealable):
    """The value was sealed with a key that is not here."""


@dataclass(frozen=True)
class SealingKey:
    """One key. Its id follows from it, so it is the same on every replica."""

    key_id: str
    secret: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: bytes) -> SealingKey:
        """Return the key of 32 random bytes. Raises ValueError for another number."""
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a sealing key has {KEY_BYTES} bytes, not {len(secret)}")
        # The prefix keeps the id from being any other digest of the key.
        return cls(hashlib.sha256(b"nvcf-sealing-key\0" + secret).hexdigest()[:16], secret)


@dataclass(frozen=True)
class Context:
    """What a value belongs to; it cannot be opened as another one's."""

    nca_id: str
    owner: str
    name: str

    def bound(self, key_id: str) -> bytes:
        """Return the associated data. JSON keeps the parts apart, whatever they contain."""
        return json.dumps([_FORM, key_id, self.nca_id, self.owner, self.name]).encode()


def seal(key: SealingKey, value: bytes, context: Context) -> str:
    """Return the sealed value."""
    nonce = os.urandom(_NONCE_BYTES)
    sealed = AESGCM(key.secret).encrypt(nonce, value, context.bound(key.key_id))
    return f"{_FORM}.{key.key_id}.{base64.urlsafe_b64encode(nonce + sealed).rstrip(b'=').decode()}"


def sealed_with(text: str) -> str:
    """Return the id of the key that a value was sealed with. Raises Unsealable."""
    return _parts(text)[0]


def unseal(keys: Mapping[str, SealingKey], text: str, context: Context) -> bytes:
    """Return the value. Raises UnknownKey and Unsealable."""
    key_id, data = _parts(text)
    key = keys.get(key_id)
    if key is None:
        raise UnknownKey(f"sealed with the key {key_id}, which is not among the sealing keys")
    try:
        return AESGCM(key.secret).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], context.bound(key_id))
    except (InvalidTag, ValueError):
        raise Unsealable("the sealed value was altered, or belongs to something else") from None


def _parts(text: str) -> tuple[str, bytes]:
    form, _, rest = text.partition(".")
    key_id, _, encoded = rest.partition(".")
    try:
        padded = encoded.encode("ascii") + b"=" * (-len(encoded) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        data = b""
    # One text for one value: base64 has spare bits that would otherwise not matter.
    same = base64.urlsafe_b64encode(data).rstrip(b"=").decode() == encoded
    if form != _FORM or len(data) <= _NONCE_BYTES or not same:
        raise Unsealable("not a sealed value")
    return key_id, data
