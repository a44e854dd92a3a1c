"""Who gets how many instances where, when several function versions want more GPUs than there are. Pure.

Max-min fairness by progressive filling (Bertsekas and Gallager, *Data Networks*, 6.5.2): whoever has least
gets the next instance, as long as it wants one and there is room. In three rounds: the least that each
deployment demands, then what requests need, then what is only kept warm. Where not even one instance each
is possible, versions take turns.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# How long an only instance stays, at least, before a version that has none may take its place, in seconds:
# many start-ups long, so that most of the time is work.
TURN = 60.0

Plan = dict[str, dict[str, int]]
_Rank = tuple[int, int, float, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one version wants of one kind of GPU.

    `devices` is what an instance takes, `holding` its present instances by cluster. `least`, `needed` and
    `wanted` are instances: by the deployment, for requests, and with those kept warm. `since` is the
    instant (Unix seconds) from which it has held any or, holding none, has waited. `turn` is how long its
    only instance is safe from those who wait (seconds).
    """

    key: str
    clusters: frozenset[str]
    devices: int
    least: int
    needed: int
    wanted: int
    since: float
    holding: Mapping[str, int] = field(default_factory=dict)
    turn: float = TURN

    @property
    def held(self) -> int:
        """Instances in all clusters."""
        return sum(self.holding.values())

    def rank(self, now: float, count: int) -> _Rank:
        """Who comes next, lowest first, when this one has been given `count` so far."""
        devices = count * self.devices
        if count:
            # Nobody moves for the sake of a draw.
            return (devices, 0 if self.held > count else 1, self.since, self.key)
        if not self.held:
            return (devices, 1, self.since, self.key)
        if now - self.since < self.turn:
            return (devices, 0, self.since, self.key)
        return (devices, 2, -self.since, self.key)


def share(now: float, claims: Iterable[Claim], devices: Mapping[str, int]) -> Plan:
    """Instances by claim and cluster that each may have. `devices` is what each cluster has in all.

    Never more than a cluster has, nor than a claim wants; nobody goes without what nobody else is given.
    The order of `claims` does not matter.
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
    """A cluster with room: one that nobody less free to choose waits for, then one where it is already."""
    possible = [each for each in claim.clusters if room.get(each, 0) >= claim.devices]
    if len(possible) < 2:
        return possible[0] if possible else None
    others = [each.clusters for each in hungry if len(each.clusters) < len(claim.clusters)]

    def cost(cluster: str) -> tuple[bool, bool, int, str]:
        contested = any(cluster in clusters for clusters in others)
        is_there = claim.holding.get(cluster, 0) > given.get(cluster, 0)
        return (contested, not is_there, -room[cluster], cluster)

    return min(possible, key=cost)
