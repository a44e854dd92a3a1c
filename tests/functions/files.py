"""Handlers of files: input assets and a large result."""

from __future__ import annotations

import hashlib
from typing import Any

from nvcf_worker import SyncRequest


def digests(request: SyncRequest) -> dict[str, Any]:
    """Return the SHA-256 of each asset."""
    return {
        name: hashlib.sha256(asset.path.read_bytes()).hexdigest() for name, asset in request.assets.items()
    }


def archive(request: SyncRequest) -> dict[str, Any]:
    """Write as many files as the body says, and return JSON."""
    number = request.json()["files"]
    for index in range(number):
        (request.output_dir / f"{index}.bin").write_bytes(bytes([index]) * 1_000_000)
    return {"files": number}
