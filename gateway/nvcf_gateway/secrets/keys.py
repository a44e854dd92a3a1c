"""What seals secrets: the interface of a key service, and keys in files as its implementation."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Protocol

from nvcf_gateway.access.key_files import KeyFiles, create_key_file
from nvcf_gateway.errors import SetupError
from nvcf_gateway.secrets.sealing import (
    KEY_BYTES,
    Context,
    SealingKey,
    UnknownKey,
    Unsealable,
    seal,
    sealed_with,
    unseal,
)

KEY_SUFFIX = ".key"
FIRST_KEY_NAME = "0001.key"


class KeyService(Protocol):
    """Seals and opens values with keys that it keeps to itself."""

    async def seal(self, value: bytes, context: Context) -> str:
        """Return the value, sealed with the current key."""
        ...

    async def unseal(self, text: str, context: Context) -> bytes:
        """Return the value. Raises Unsealable."""
        ...

    def is_current(self, text: str) -> bool:
        """Return whether a value was sealed with the current key."""
        ...


class FileKeys(KeyFiles[tuple[SealingKey, ...]]):
    """A key service with the keys of a file, or of a folder of files `*.key`.

    The last one by name seals, all open. By name, not by time: all gateways have to agree, however the files
    reached them.
    """

    def __init__(self, path: Path) -> None:
        """Read the keys. Raises SetupError."""
        super().__init__(path, KEY_SUFFIX, "sealing keys", lambda files: _read(path, files))

    async def seal(self, value: bytes, context: Context) -> str:
        return seal(self.ring[0], value, context)

    async def unseal(self, text: str, context: Context) -> bytes:
        try:
            return unseal(self._by_id(), text, context)
        except UnknownKey:
            # Another replica may have sealed it with a key that has just been added.
            self.refresh_if_due()
            return unseal(self._by_id(), text, context)

    def is_current(self, text: str) -> bool:
        try:
            return sealed_with(text) == self.ring[0].key_id
        except Unsealable:
            # Nothing that sealing it again would help.
            return True

    def _by_id(self) -> dict[str, SealingKey]:
        return {key.key_id: key for key in self.ring}


def create_sealing_key(path: Path) -> None:
    """Create a key file (mode 0600), unless it exists. Raises SetupError."""
    create_key_file(path, base64.b64encode(os.urandom(KEY_BYTES)) + b"\n", "sealing key")


def _read(path: Path, files: list[Path]) -> tuple[SealingKey, ...]:
    by_name = sorted(files, key=lambda each: each.name, reverse=True)
    keys = tuple(_read_key(each) for each in by_name)
    if not keys:
        raise SetupError(
            f"no sealing key in {path}: put a file *{KEY_SUFFIX} there (openssl rand -base64 {KEY_BYTES})"
        )
    return keys


def _read_key(path: Path) -> SealingKey:
    try:
        return SealingKey.of(base64.b64decode(path.read_bytes().strip(), validate=True))
    except (OSError, binascii.Error, ValueError):
        raise SetupError(
            f"cannot read the sealing key {path}: it must hold {KEY_BYTES} random bytes in base64 "
            f"(openssl rand -base64 {KEY_BYTES})"
        ) from None
