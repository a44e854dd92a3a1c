"""What the running agent has already written down, so that nothing is written twice or left out."""

from collections.abc import Iterable

from nvcf_agent.request import Request
from nvcf_agent.store import Store, remembered


class Memory:
    """Requests as the store has them, and the ids that were ended before they came (until a Unix time)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._saved: dict[str, Request] = {}
        self.ended: dict[str, float] = {}

    async def load(self, cluster: str) -> list[Request]:
        """The requests of a cluster that an earlier run remembered. Raises `StoreError`."""
        found, self.ended = await self._store.load()
        mine = [each for each in found if each.order.cluster_id == cluster]
        self._saved = {each.id: remembered(each) for each in mine}
        return mine

    async def save(self, listed: Iterable[Request]) -> None:
        """Write down what has changed of these. Raises `StoreError`."""
        kept = {each.id: remembered(each) for each in listed}
        fresh = {key: each for key, each in kept.items() if self._saved.get(key) != each}
        if fresh:
            await self._store.save(fresh.values())
            self._saved |= fresh

    async def save_ended(self, instance_ids: Iterable[str], *, until: float, wall: float) -> None:
        """Remember ids that were ended before they came, and drop what is over. Raises `StoreError`."""
        ended = {key: end for key, end in self.ended.items() if end > wall}
        ended |= dict.fromkeys(instance_ids, until)
        await self._store.save_ended(ended)
        self.ended = ended

    async def forget(self, instance_id: str) -> None:
        """Drop a request. Raises `StoreError`."""
        await self._store.forget(instance_id)
        self._saved.pop(instance_id, None)
