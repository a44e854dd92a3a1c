"""The installation's Ed25519 keys: the newest signs, all verify, and what changes is read again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nvcf_gateway.access.signed_links import derive_key
from nvcf_gateway.errors import SetupError

_log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
URGENT_SECONDS = 0.05
KEY_SUFFIX = ".pem"
FIRST_KEY_NAME = "signing.pem"

Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class SigningKey:
    """One key. `key_id` is derived from its public half: the same on every replica."""

    key_id: str
    private: Ed25519PrivateKey
    public: Ed25519PublicKey


def signing_key(private: Ed25519PrivateKey) -> SigningKey:
    """A key with its id: the first 16 hex digits of the SHA-256 of the public key's 32 bytes."""
    public = private.public_key()
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return SigningKey(hashlib.sha256(raw).hexdigest()[:16], private, public)


class KeyRing:
    """Keys, the one that signs first."""

    def __init__(self, keys: tuple[SigningKey, ...]) -> None:
        if not keys:
            raise ValueError("a key ring needs a key")
        self.signer = keys[0]
        self.by_id = {key.key_id: key for key in keys}
        # Every invocation makes a link: once is enough.
        self._link_keys = tuple(derive_key(key.private.private_bytes_raw()) for key in keys)

    def link_keys(self) -> tuple[bytes, ...]:
        """Keys that seal links, the one to seal with first."""
        return self._link_keys

    def candidates(self, key_id: str | None) -> list[SigningKey]:
        """Keys that may have signed a token: the one it names; all, when it names none."""
        if key_id is None:
            return list(self.by_id.values())
        found = self.by_id.get(key_id)
        return [] if found is None else [found]


class SigningKeys:
    """The key ring of a PEM file, or of a folder of files `*.pem`, as it is now."""

    def __init__(self, path: Path) -> None:
        """Read the keys; a first one is made (mode 0600) where there is none. Raises SetupError."""
        self._path = path
        if path.is_dir():
            if not _files(path):
                make_key(path / FIRST_KEY_NAME)
        elif not path.exists():
            make_key(path)
        self._looked = time.monotonic()
        self._stamp = _stamp(path)
        self.ring = _read(path)

    async def follow(self) -> None:
        """Read the keys again whenever the files change, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await asyncio.to_thread(self.refresh)

    def refresh_if_due(self) -> None:
        """`refresh`, but not more often than in `URGENT_SECONDS`: anybody can name unknown keys."""
        now = time.monotonic()
        if now - self._looked >= URGENT_SECONDS:
            self._looked = now
            self.refresh()

    def refresh(self) -> bool:
        """Read the keys again if the files have changed; True if they have. Keys that cannot be read stay."""
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return False
            ring = _read(self._path)
        except (SetupError, OSError) as error:
            # Perhaps half written: looked at again the next time.
            _log.error("signing keys: %s; the old ones stay", error)
            return False
        # In this order: whoever finds the stamp current takes the ring for current, too.
        self.ring = ring
        self._stamp = stamp
        _log.info("signing keys read again", extra={"keys": len(ring.by_id), "signer": ring.signer.key_id})
        return True


def make_key(path: Path) -> None:
    """Make a new key, unless the file exists by now. Raises SetupError."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        # Whoever links first has made the key for all replicas that share the folder, whole at once.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    except OSError as error:
        raise SetupError(f"cannot create the signing key {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs, making one where there is none. Raises SetupError."""
    return SigningKeys(path).ring.signer.private


def _files(path: Path) -> list[Path]:
    """The key files, newest first: by whole seconds, then by name.

    Whole seconds, because a file system of mounted secrets writes all files at once, in any order.
    """
    if not path.is_dir():
        return [path]
    files = [each for each in path.iterdir() if each.suffix == KEY_SUFFIX and not each.name.startswith(".")]
    return sorted(files, key=lambda each: (int(each.stat().st_mtime), each.name), reverse=True)


def _stamp(path: Path) -> Stamp:
    found = []
    for each in _files(path):
        status = each.stat()
        found.append((each.name, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _read(path: Path) -> KeyRing:
    try:
        keys = tuple(signing_key(_read_key(each)) for each in _files(path))
    except OSError as error:
        raise SetupError(f"cannot read the signing keys in {path}: {error.strerror}") from error
    if not keys:
        raise SetupError(f"no signing key in {path}: files *{KEY_SUFFIX} with Ed25519 keys expected")
    return KeyRing(keys)


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SetupError(
            f"cannot read the signing key {path}: a PEM file with an Ed25519 key expected"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"the signing key {path} is no Ed25519 key")
    return key
