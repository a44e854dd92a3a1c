"""Max-min fair shares for function versions that together want more GPUs than there are. Pure.

Progressive filling (Bertsekas and Gallager, *Data Networks*, 6.5.2): the version with the least gets the next
instance, as long as it wants one and there is room. There are three rounds: the minimum of each deployment,
what requests need, and what is only kept warm. If not even one instance each is possible, versions alternate
in time slices.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# Least seconds that a version keeps its only instance while others have none. Much longer than a start-up,
# so that most of the time is work.
TIME_SLICE = 60.0

Plan = dict[str, dict[str, int]]
_Rank = tuple[int, int, float, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one version wants of one kind of GPU.

    `devices` is what an instance takes, `holding` its present instances by cluster. Instance counts: `least`
    by the deployment, `needed` for requests, `wanted` with those kept warm. `since` is the instant (Unix
    seconds) from which it has held any or, holding none, has waited. Its only instance is safe from others
    for `time_slice` seconds. In the clusters `keeps` it starts nothing now, but may keep what it holds.
    """

    key: str
    clusters: frozenset[str]
    devices: int
    least: int
    needed: int
    wanted: int
    since: float
    holding: Mapping[str, int] = field(default_factory=dict)
    time_slice: float = TIME_SLICE
    keeps: frozenset[str] = frozenset()

    @property
    def held(self) -> int:
        """Present instances in all clusters."""
        return sum(self.holding.values())

    def rank(self, now: float, count: int) -> _Rank:
        """Return the place in the order of filling, lowest first, with `count` instances given so far."""
        devices = count * self.devices
        if count:
            # A tie moves no instance.
            return (devices, 0 if self.held > count else 1, self.since, self.key)
        if not self.held:
            return (devices, 1, self.since, self.key)
        if now - self.since < self.time_slice:
            return (devices, 0, self.since, self.key)
        return (devices, 2, -self.since, self.key)


def max_min_shares(now: float, claims: Iterable[Claim], devices: Mapping[str, int]) -> Plan:
    """Return the instances that each claim may have, by cluster. `devices` is the total of each cluster.

    Never more than a cluster has or a claim wants, and nothing that is wanted stays unused. The order of
    `claims` does not matter.
    """
    everybody = sorted(claims, key=lambda each: each.key)
    room = dict(devices)
    given: dict[str, Counter[str]] = {each.key: Counter() for each in everybody}
    for goal in (
        {each.key: min(each.least, each.wanted) for each in everybody},
        {each.key: min(each.needed, each.wanted) for each in everybody},
        {each.key: each.wanted for each in everybody},
    ):
        _fill(now, everybody, goal, room, given)
    return {key: dict(clusters) for key, clusters in given.items()}


def _fill(
    now: float,
    claims: Sequence[Claim],
    goal: Mapping[str, int],
    room: dict[str, int],
    given: dict[str, Counter[str]],
) -> None:
    hungry = {each.key: each for each in claims if given[each.key].total() < goal[each.key]}
    waiting = [(each.rank(now, given[each.key].total()), each.key) for each in hungry.values()]
    heapq.heapify(waiting)
    while waiting:
        _, key = heapq.heappop(waiting)
        claim = hungry[key]
        cluster = _choose(claim, hungry.values(), room, given[key])
        if cluster is None:
            del hungry[key]
            continue
        given[key][cluster] += 1
        room[cluster] -= claim.devices
        if given[key].total() < goal[key]:
            heapq.heappush(waiting, (claim.rank(now, given[key].total()), key))
        else:
            del hungry[key]


def _choose(
    claim: Claim, hungry: Iterable[Claim], room: Mapping[str, int], given: Mapping[str, int]
) -> str | None:
    """Return a cluster with room: not contested by less flexible claims, then one in use already."""
    kept = (each for each in claim.keeps if given.get(each, 0) < claim.holding.get(each, 0))
    possible = [each for each in (*claim.clusters, *kept) if room.get(each, 0) >= claim.devices]
    if len(possible) < 2:
        return possible[0] if possible else None
    others = [each.clusters for each in hungry if len(each.clusters) < len(claim.clusters)]

    def cost(cluster: str) -> tuple[bool, bool, int, str]:
        contested = any(cluster in clusters for clusters in others)
        is_there = claim.holding.get(cluster, 0) > given.get(cluster, 0)
        return (contested, not is_there, -room[cluster], cluster)

    return min(possible, key=cost)
