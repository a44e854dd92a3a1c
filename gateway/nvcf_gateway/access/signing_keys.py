"""The installation's Ed25519 keys: the newest signs, all verify. Changed files are read again."""

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

from nvcf_gateway.access.signed_tokens import derive_key
from nvcf_gateway.errors import SetupError

_log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
URGENT_SECONDS = 0.05
KEY_SUFFIX = ".pem"
FIRST_KEY_NAME = "signing.pem"

Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class SigningKey:
    """One key. `key_id` is derived from the public half, so it is the same on every replica."""

    key_id: str
    private: Ed25519PrivateKey
    public: Ed25519PublicKey


def signing_key(private: Ed25519PrivateKey) -> SigningKey:
    """Add the id to a key: the first 16 hex digits of the SHA-256 of the public key's 32 bytes."""
    public = private.public_key()
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return SigningKey(hashlib.sha256(raw).hexdigest()[:16], private, public)


class KeyRing:
    """A set of keys; the first one signs."""

    def __init__(self, keys: tuple[SigningKey, ...]) -> None:
        if not keys:
            raise ValueError("a key ring needs a key")
        self.signer = keys[0]
        self.by_id = {key.key_id: key for key in keys}
        # Derived once: every invocation signs URLs.
        self._mac_keys = tuple(derive_key(key.private.private_bytes_raw()) for key in keys)

    def mac_keys(self) -> tuple[bytes, ...]:
        """Return the keys of signed URLs and dashboard tokens; the first one signs."""
        return self._mac_keys

    def candidates(self, key_id: str | None) -> list[SigningKey]:
        """Return the keys that may have signed a token: the one it names, or all if it names none."""
        if key_id is None:
            return list(self.by_id.values())
        found = self.by_id.get(key_id)
        return [] if found is None else [found]


class SigningKeys:
    """The current key ring of a PEM file, or of a folder of files `*.pem`."""

    def __init__(self, path: Path) -> None:
        """Read the keys; create a first one (mode 0600) if there is none. Raises SetupError."""
        self._path = path
        if path.is_dir():
            if not _files(path):
                create_key(path / FIRST_KEY_NAME)
        elif not path.exists():
            create_key(path)
        self._checked = time.monotonic()
        self._stamp = _stamp(path)
        self.ring = _read(path)

    async def follow(self) -> None:
        """Read the keys again when the files change, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await asyncio.to_thread(self.refresh)

    def refresh_if_due(self) -> None:
        """Refresh at most once in `URGENT_SECONDS`: anybody can send tokens that name unknown keys."""
        now = time.monotonic()
        if now - self._checked >= URGENT_SECONDS:
            self._checked = now
            self.refresh()

    def refresh(self) -> bool:
        """Read the keys again if the files have changed; return whether they have.

        If the files cannot be read, the keys of before stay.
        """
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return False
            ring = _read(self._path)
        except (SetupError, OSError) as error:
            # The files may be half written: the next refresh tries again.
            _log.error("signing keys: %s; the previous keys stay in use", error)
            return False
        # In this order: another thread that sees the new stamp must see the new ring.
        self.ring = ring
        self._stamp = stamp
        _log.info("signing keys read again", extra={"keys": len(ring.by_id), "signer": ring.signer.key_id})
        return True


def create_key(path: Path) -> None:
    """Create a key, unless another replica has created the file meanwhile. Raises SetupError."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
        # Atomic: the first replica that links creates the key for all that share the folder.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    except OSError as error:
        raise SetupError(f"cannot create the signing key {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    """Return the key files, newest first: by whole seconds, then by name.

    Whole seconds, because mounted secrets are written all at once, in any order.
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
        raise SetupError(f"no signing key in {path}: put a file *{KEY_SUFFIX} with an Ed25519 key there")
    return KeyRing(keys)


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SetupError(
            f"cannot read the signing key {path}: it must be a PEM file with an Ed25519 key"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"the signing key {path} is not an Ed25519 key")
    return key
