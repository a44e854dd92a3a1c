"""The installation's Ed25519 keys: the newest signs, all verify. Changed files are read again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nvcf_gateway.access.key_files import KeyFiles, create_key_file, key_files
from nvcf_gateway.access.signed_tokens import derive_key
from nvcf_gateway.errors import SetupError

KEY_SUFFIX = ".pem"
FIRST_KEY_NAME = "signing.pem"


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


class SigningKeys(KeyFiles[KeyRing]):
    """The current key ring of a PEM file, or of a folder of files `*.pem`."""

    def __init__(self, path: Path) -> None:
        """Read the keys; create a first one (mode 0600) if there is none. Raises SetupError."""
        if path.is_dir():
            if not key_files(path, KEY_SUFFIX):
                create_key(path / FIRST_KEY_NAME)
        elif not path.exists():
            create_key(path)
        super().__init__(path, KEY_SUFFIX, "signing keys", lambda files: _read(path, files))


def create_key(path: Path) -> None:
    """Create a key, unless another replica has created the file meanwhile. Raises SetupError."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    create_key_file(path, pem, "signing key")


def _read(path: Path, files: list[Path]) -> KeyRing:
    keys = tuple(signing_key(_read_key(each)) for each in files)
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
