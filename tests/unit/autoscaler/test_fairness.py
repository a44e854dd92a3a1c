"""Nobody starves where several versions want more than there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nvcf_autoscaler.placement.fairness import TIME_SLICE, Claim, Plan, max_min_shares

NOW = 1000.0
CLUSTERS = ("one", "two", "three")


def claim(key: str, wanted: int, **changes: object) -> Claim:
    usual = Claim(key, frozenset({"one"}), 1, least=0, needed=wanted, wanted=wanted, since=NOW - 5.0)
    return replace(usual, **changes)  # type: ignore[arg-type]


def totals(plan: Plan) -> dict[str, int]:
    return {key: sum(clusters.values()) for key, clusters in plan.items()}


@st.composite
def claim_lists(draw: st.DrawFn, *, alike: bool = False) -> list[Claim]:
    """Versions with demands and holdings of all sorts; `alike` ones take one device anywhere."""
    found = []
    for number in range(draw(st.integers(1, 8))):
        least = 0 if alike else draw(st.integers(0, 2))
        wanted = draw(st.integers(least, 12))
        chosen = CLUSTERS if alike else draw(st.sets(st.sampled_from(CLUSTERS), min_size=1))
        kept = set() if alike else draw(st.sets(st.sampled_from(CLUSTERS))) - set(chosen)
        found.append(
            Claim(
                key=f"v{number}",
                clusters=frozenset(chosen),
                devices=1 if alike else draw(st.integers(1, 3)),
                least=least,
                needed=wanted if alike else draw(st.integers(0, wanted)),
                wanted=wanted,
                since=NOW - draw(st.floats(0, 200)),
                holding=draw(st.dictionaries(st.sampled_from(sorted({*chosen, *kept})), st.integers(1, 4))),
                keeps=frozenset(kept),
            )
        )
    return found


capacities = st.fixed_dictionaries({name: st.integers(0, 8) for name in CLUSTERS})


@given(claim_lists(), capacities)
def test_no_cluster_gives_more_than_it_has_and_nobody_gets_more_than_it_wants(
    claims: list[Claim], devices: dict[str, int]
) -> None:
    plan = max_min_shares(NOW, claims, devices)
    used: Counter[str] = Counter()
    for each in claims:
        assert sum(plan[each.key].values()) <= each.wanted
        assert plan[each.key].keys() <= each.clusters | each.keeps
        assert all(plan[each.key].get(one, 0) <= each.holding.get(one, 0) for one in each.keeps)
        for cluster, count in plan[each.key].items():
            used[cluster] += count * each.devices
    assert all(used[cluster] <= devices[cluster] for cluster in used)


@given(claim_lists(), capacities)
def test_nothing_that_somebody_wants_lies_idle(claims: list[Claim], devices: dict[str, int]) -> None:
    plan = max_min_shares(NOW, claims, devices)
    left = dict(devices)
    for each in claims:
        for cluster, count in plan[each.key].items():
            left[cluster] -= count * each.devices
    hungry = [each for each in claims if sum(plan[each.key].values()) < each.wanted]
    assume(hungry)
    for each in hungry:
        assert all(left[cluster] < each.devices for cluster in each.clusters)


@given(claim_lists(), capacities, st.randoms())
def test_the_order_in_which_claims_come_does_not_matter(
    claims: list[Claim], devices: dict[str, int], shuffler: object
) -> None:
    turned = list(claims)
    shuffler.shuffle(turned)  # type: ignore[attr-defined]
    assert max_min_shares(NOW, turned, devices) == max_min_shares(NOW, claims, devices)


@given(claim_lists(alike=True), capacities)
def test_whoever_wants_more_has_at_most_one_less_than_anybody_else(
    claims: list[Claim], devices: dict[str, int]
) -> None:
    got = totals(max_min_shares(NOW, claims, devices))
    hungry = [each for each in claims if got[each.key] < each.wanted]
    assume(hungry)
    for each in hungry:
        assert all(got[other.key] <= got[each.key] + 1 for other in claims)


@given(claim_lists(alike=True), capacities)
def test_once_carried_out_nobody_has_to_move(claims: list[Claim], devices: dict[str, int]) -> None:
    # A claim whose time slice ends meanwhile may have to.
    claims = [replace(each, since=max(each.since, NOW - TIME_SLICE / 2)) for each in claims]
    plan = max_min_shares(NOW, claims, devices)
    after = [carried_out(each, plan[each.key], NOW) for each in claims]
    assert totals(max_min_shares(NOW + 1.0, after, devices)) == totals(plan)


def carried_out(before: Claim, holding: Mapping[str, int], now: float) -> Claim:
    """The claim when its version has what the plan says; those without one wait from then on."""
    changed = bool(before.held) != bool(sum(holding.values()))
    return replace(before, since=now if changed else before.since, holding=dict(holding))


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=50)
def test_everybody_gets_a_time_slice_however_much_the_others_want(
    versions: int, devices: int, wanted: int
) -> None:
    claims = [claim(f"v{number}", wanted, since=NOW) for number in range(versions)]
    served: dict[str, float] = {}
    now = NOW
    rounds = -(-versions // devices)
    while now <= NOW + TIME_SLICE * rounds + 1.0:
        plan = max_min_shares(now, claims, {"one": devices})
        claims = [carried_out(each, plan[each.key], now) for each in claims]
        for each in claims:
            if each.held:
                served.setdefault(each.key, now)
        now += 5.0
    assert served.keys() == {each.key for each in claims}


def test_a_version_that_waits_gets_one_of_those_who_have_many() -> None:
    greedy = claim("greedy", 50, holding={"one": 8})
    assert totals(max_min_shares(NOW, [greedy, claim("small", 1)], {"one": 8})) == {"greedy": 7, "small": 1}


def test_what_is_only_kept_warm_goes_before_what_is_needed() -> None:
    idle = claim("idle", 4, needed=0, holding={"one": 4}, since=NOW - 500)
    busy = claim("busy", 6)
    assert totals(max_min_shares(NOW, [idle, busy], {"one": 4})) == {"idle": 0, "busy": 4}


def test_the_least_of_a_deployment_is_kept_for_it() -> None:
    reserved = claim("reserved", 2, least=2, needed=0, holding={"one": 2}, since=NOW - 500)
    assert totals(max_min_shares(NOW, [reserved, claim("busy", 9)], {"one": 4})) == {"reserved": 2, "busy": 2}


def test_larger_instances_count_for_what_they_take() -> None:
    pair = claim("pair", 4, devices=2)
    single = claim("single", 8)
    assert totals(max_min_shares(NOW, [pair, single], {"one": 8})) == {"pair": 2, "single": 4}


def test_who_may_go_elsewhere_leaves_the_only_place_of_another() -> None:
    anywhere = claim("anywhere", 1, clusters=frozenset({"one", "two"}), holding={"one": 1})
    plan = max_min_shares(NOW, [anywhere, claim("bound", 1)], {"one": 1, "two": 1})
    assert plan == {"anywhere": {"two": 1}, "bound": {"one": 1}}


def test_an_only_instance_stays_for_its_time_slice() -> None:
    def of(held_for: float) -> dict[str, int]:
        holder = claim("holder", 1, holding={"one": 1}, since=NOW - held_for)
        return totals(max_min_shares(NOW, [holder, claim("waiter", 1, since=NOW - 1000)], {"one": 1}))

    assert of(TIME_SLICE - 1) == {"holder": 1, "waiter": 0}
    assert of(TIME_SLICE + 1) == {"holder": 0, "waiter": 1}
