"""Owner and size of each asset, followed by every replica: an account's use is known without asking."""

from __future__ import annotations

import hashlib

from nvcf_broker.connection import BrokerClient
from nvcf_broker.kv import KvMirror

BUCKET = "nvcf_asset_index"


class AssetIndex:
    """Sizes of assets by `ACCOUNT.ASSET`; an entry goes when its asset expires."""

    def __init__(self, client: BrokerClient, replicas: int) -> None:
        self._sizes: dict[str, dict[str, int]] = {}
        self.mirror: KvMirror[int] = KvMirror(
            client, BUCKET, int, lambda size: str(size).encode(), on_change=self._changed, replicas=replicas
        )

    def _changed(self, key: str, size: int | None) -> None:
        account, _, asset = key.partition(".")
        if size is not None:
            self._sizes.setdefault(account, {})[asset] = size
        elif account in self._sizes:
            self._sizes[account].pop(asset, None)
            if not self._sizes[account]:
                del self._sizes[account]

    def count(self, account: str) -> int:
        """Return the number of an account's assets."""
        return len(self._sizes.get(_hashed(account), ()))

    def ids(self, account: str) -> list[str]:
        """Return the ids of an account's assets."""
        return sorted(self._sizes.get(_hashed(account), ()))

    def size(self, account: str) -> int:
        """Return the bytes of an account's assets."""
        return sum(self._sizes.get(_hashed(account), {}).values())

    def size_of(self, account: str, asset_id: str) -> int:
        """Return the bytes that count for one asset."""
        return self._sizes.get(_hashed(account), {}).get(asset_id, 0)

    async def note(self, account: str, asset_id: str, size: int, life: float) -> None:
        """Note the size of an asset that lives `life` seconds. Raises BrokerError."""
        await self.mirror.put(f"{_hashed(account)}.{asset_id}", size, life=life)

    async def forget(self, account: str, asset_id: str) -> None:
        """Forget an asset. Raises BrokerError."""
        await self.mirror.delete(f"{_hashed(account)}.{asset_id}")


def _hashed(account: str) -> str:
    # An account's name may hold what a key may not.
    return hashlib.sha256(account.encode()).hexdigest()[:24]
