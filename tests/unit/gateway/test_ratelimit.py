"""Rate limits: which hold, how they count, and that no interval ever sees more calls than its limit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcf_gateway.ratelimit.counters import HOLD, Counters, Grant, Window
from nvcf_gateway.ratelimit.limiter import too_many_requests
from nvcf_gateway.ratelimit.members import LIFE_SECONDS, Members, owner_of
from nvcf_gateway.ratelimit.messages import (
    Acquire,
    GrantCounts,
    Granted,
    Heartbeat,
    InvalidMessage,
    decode,
    encode,
)
from nvcf_gateway.ratelimit.permits import LARGEST_SHARE, Permits, loan_seconds
from nvcf_gateway.ratelimit.policy import Limit, Rate, limits_of, parse_rates
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import AccountRate, FunctionVersion, RateLimit

# The machine may be busy with other tests.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

NOW = 1_800_000_000.0
VERSION = "3b241101-e2bb-4255-8caf-4136c566a962"


def limit(calls: int, seconds: int = 60, key: str = "k") -> Limit:
    return Limit("account-minute", key, calls, seconds)


# --- policy


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("5-S", (Rate(5, 1),)),
        ("5-M", (Rate(5, 60),)),
        ("5-H", (Rate(5, 3600),)),
        ("0-D", (Rate(0, 86400),)),
        ("300-H,5-S", (Rate(5, 1), Rate(300, 3600))),
        ("9-S,5-S,7-S", (Rate(5, 1),)),
    ],
)
def test_rates(text: str, rates: tuple[Rate, ...]) -> None:
    assert parse_rates(text) == rates


@pytest.mark.parametrize(
    "text", ["", "5", "-S", "5-W", "5-s", "5-S,", "x-S", "5 -S", "-5-S", "1.5-S", "\u0663-S"]
)
def test_malformed_rates_name_the_field(text: str) -> None:
    for name in ("rate", "perUserRate"):
        with pytest.raises(InvalidRecord) as caught:
            RateLimit.from_dict({name: text})
        assert caught.value.field == name
    with pytest.raises(InvalidRecord) as caught:
        RateLimit.from_dict({"perNcaIdConfigs": [{"ncaId": "a", "rate": text}]})
    assert caught.value.field == "perNcaIdConfigs[0].rate"


def test_two_rates_of_one_account_are_refused() -> None:
    entry = {"ncaId": "a", "rate": "1-S"}
    with pytest.raises(InvalidRecord) as caught:
        RateLimit.from_dict({"perNcaIdConfigs": [entry, entry]})
    assert caught.value.field == "perNcaIdConfigs[1].ncaId"


POLICY = RateLimit(
    rate="10-S", excluded=("x", "own"), account_rates=(AccountRate("own", "3-M"),), user_rate="2-S"
)


@pytest.mark.parametrize(
    ("policy", "account", "subject", "expected"),
    [
        (POLICY, "a", "u", [("account-second", 10), ("user-second", 2)]),
        (POLICY, "a", "", [("account-second", 10)]),
        (POLICY, "x", "u", [("user-second", 2)]),
        (POLICY, "x", "", []),
        (POLICY, "own", "u", [("account-minute", 3), ("user-second", 2)]),
        (RateLimit(), "a", "u", []),
        (RateLimit(rate="5-S,300-H"), "a", "u", [("account-second", 5), ("account-hour", 300)]),
        (RateLimit(account_rates=(AccountRate("own", "1-D"),)), "a", "u", []),
    ],
)
def test_which_limits_hold(
    policy: RateLimit, account: str, subject: str, expected: list[tuple[str, int]]
) -> None:
    found = limits_of(policy, VERSION, account, subject)
    assert [(each.name, each.calls) for each in found] == expected


def test_accounts_and_users_are_counted_apart() -> None:
    keys = [
        each.key
        for account, subject in itertools.product("ab", "uv")
        for each in limits_of(POLICY, VERSION, account, subject)
    ]
    assert len(set(keys)) == 2 + 4


def test_a_record_without_a_rate_limit_stays_readable() -> None:
    old = b'{"id":"%s","functionId":"%s","name":"n","ncaId":"a","createdAt":1}' % ((VERSION.encode(),) * 2)
    assert FunctionVersion.from_json(old).rate_limit is None


@given(
    st.builds(
        RateLimit,
        rate=st.none() | st.from_regex(r"[0-9]{1,9}-[SMHD](,[0-9]{1,9}-[SMHD]){0,3}", fullmatch=True),
        excluded=st.lists(st.from_regex(r"[a-z0-9]{1,9}", fullmatch=True), unique=True).map(tuple),
        account_rates=st.dictionaries(
            st.from_regex(r"[a-z0-9]{1,9}", fullmatch=True), st.just("1-S"), max_size=5
        ).map(lambda each: tuple(AccountRate(*one) for one in each.items())),
        sync_check=st.booleans(),
    )
)
def test_policies_survive_storage(policy: RateLimit) -> None:
    assert RateLimit.from_json(policy.to_json()) == policy


# --- counting


def most_in_any_interval(times: list[float], seconds: float) -> int:
    times = sorted(times)
    most, first = 0, 0
    for last, time in enumerate(times):
        while time - times[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


ARRIVALS = st.lists(
    st.tuples(st.floats(0, 0.7, allow_nan=False), st.integers(1, 9), st.floats(0, 1)),
    min_size=1,
    max_size=120,
)


@given(arrivals=ARRIVALS, calls=st.integers(0, 20), begin=st.floats(0, 1))
def test_no_interval_sees_more_calls_than_the_limit_though_grants_are_used_late(
    arrivals: list[tuple[float, int, float]], calls: int, begin: float
) -> None:
    counters, now, used = Counters(), NOW + begin, []
    only = limit(calls, 1)
    for gap, wanted, late in arrivals:
        now += gap
        grant = counters.acquire([only], wanted, now)
        assert 0 <= grant.granted <= wanted
        used += [now + late * 0.999 * loan_seconds((only,))] * grant.granted
    assert most_in_any_interval(used, 1.0) <= calls


@given(arrivals=ARRIVALS, calls=st.integers(1, 20))
def test_retry_after_is_when_a_call_passes_again_and_not_before(
    arrivals: list[tuple[float, int, float]], calls: int
) -> None:
    counters, now = Counters(), NOW
    only = limit(calls, 1)
    for gap, wanted, part in arrivals:
        now += gap
        grant = counters.acquire([only], wanted, now)
        if grant.violated is None:
            continue
        assert grant.retry_after > 0
        assert counters.acquire([only], 1, now + grant.retry_after * min(part, 0.98)).granted == 0
        assert counters.acquire([only], 0, now + grant.retry_after + 1e-6) == Grant(0)
        now += grant.retry_after + 1e-6
        assert counters.acquire([only], 1, now).granted == 1


def test_a_full_limit_is_used_to_the_full() -> None:
    counters = Counters()
    assert counters.acquire([limit(100)], 150, NOW).granted == 100
    assert counters.acquire([limit(100)], 1, NOW + 60).granted == 0
    assert counters.acquire([limit(100)], 150, NOW + 60 * 1.03).granted == 100


def test_a_call_that_one_limit_refuses_counts_for_none() -> None:
    counters = Counters()
    account, user = limit(10, key="account"), limit(2, key="user")
    assert [counters.acquire([account, user], 1, NOW).granted for _ in range(5)] == [1, 1, 0, 0, 0]
    other = limit(100, key="other user")
    assert counters.acquire([account, other], 20, NOW).granted == 8


def test_a_changed_number_keeps_what_was_used() -> None:
    counters = Counters()
    assert counters.acquire([limit(10)], 10, NOW).granted == 10
    assert counters.acquire([limit(12)], 10, NOW).granted == 2
    assert counters.acquire([limit(3)], 1, NOW).granted == 0


def test_zero_refuses_every_call() -> None:
    grant = Counters().acquire([limit(0)], 1, NOW)
    assert (grant.granted, grant.retry_after) == (0, 60)


def test_expired_counts_are_dropped() -> None:
    counters = Counters()
    for number in range(50):
        counters.acquire([limit(5, 1, str(number))], 1, NOW)
    counters.forget(NOW + 0.5)
    assert len(counters) == 50
    counters.forget(NOW + 1.1)
    assert len(counters) == 0


# --- several replicas


@given(
    acquired=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=60),
    order=st.randoms(use_true_random=False),
)
def test_counts_that_arrive_late_twice_and_out_of_order_add_up(
    acquired: list[tuple[int, int]], order: object
) -> None:
    replicas = [Counters() for _ in range(3)]
    only = limit(10_000)
    messages: list[tuple[str, object]] = []
    for number, (replica, wanted) in enumerate(acquired):
        replicas[replica].acquire([only], wanted, NOW + number * 0.01)
        messages.append((str(replica), replicas[replica].changes()))
    messages = [
        (str(n), dict(part)) for n, counters in enumerate(replicas) for part in counters.everything()
    ] + messages * 2
    order.shuffle(messages)  # type: ignore[attr-defined]
    reader = Counters()
    for name, counts in messages:
        reader.merge(name, decode(encode(GrantCounts.of("r", counts)), GrantCounts).by_slot())  # type: ignore[arg-type]
    total = sum(wanted for _, wanted in acquired)
    assert reader.acquire([only], 10_000, NOW + 1).granted == 10_000 - total


def test_a_new_owner_goes_on_where_the_old_one_stopped() -> None:
    old, new = Counters(), Counters()
    old.acquire([limit(10)], 7, NOW)
    new.merge("old", old.changes())
    assert new.acquire([limit(10)], 9, NOW + 1).granted == 3
    old.merge("new", new.changes())
    assert old.acquire([limit(10)], 1, NOW + 2).granted == 0


@given(st.sets(st.integers(0, 50).map(str), min_size=2, max_size=8))
def test_only_the_keys_of_a_lost_member_move(members: set[str]) -> None:
    lost = min(members)
    for key in map(str, range(100)):
        before = owner_of(key, frozenset(members))
        after = owner_of(key, frozenset(members - {lost}))
        assert after == before or before == lost


def test_members_come_and_go() -> None:
    members = Members("a")
    assert members.seen("b", 0)
    assert not members.seen("b", 1)
    assert not members.seen("a", 1)
    assert members.alive() == {"a", "b"}
    assert {members.owner(str(key)) for key in range(50)} == {"a", "b"}
    members.expire(1 + LIFE_SECONDS + 0.1)
    assert {members.owner(str(key)) for key in range(50)} == {"a"}
    assert members.seen("b", 9)


def test_window_counts_of_slots_long_past_do_not_matter() -> None:
    window = Window()
    window.add(1000, 3)
    assert window.used(1000) == 3
    window.merge("peer", {1000 - HOLD: 50, 999: 2, 1001: 1})
    assert window.used(1000) == 6
    assert window.used(1000 + HOLD) == 1
    assert window.used(1000 + HOLD + 1) == 0
    assert window.is_empty


# --- borrowing


def test_permits_borrow_as_many_as_were_used_lately_within_bounds() -> None:
    only = (limit(1000),)
    permits = Permits(only, borrows=True)
    assert permits.acquire(0.0) is None
    assert permits.advance() == 1
    assert permits.granted(Grant(2), needed=1, requested_at=0.0, now=0.01) == 1
    assert permits.acquire(0.02) == Grant(1)
    assert permits.acquire(0.03) is None
    for _ in range(100):
        permits.acquire(0.04)
    assert permits.advance() == 1000 * LARGEST_SHARE


def test_a_loan_ends() -> None:
    permits = Permits((limit(1000),), borrows=True)
    permits.acquire(0.0)
    permits.granted(Grant(9), needed=1, requested_at=0.0, now=0.1)
    assert permits.acquire(loan_seconds(permits.limits) - 0.01) == Grant(1)
    assert permits.acquire(loan_seconds(permits.limits)) is None


def test_the_synchronous_check_borrows_nothing() -> None:
    permits = Permits((limit(1000),), borrows=False)
    permits.acquire(0.0)
    assert permits.advance() == 0


def test_a_refusal_is_known_until_there_is_room() -> None:
    only = limit(10)
    permits = Permits((only,), borrows=True)
    assert permits.acquire(0.0) is None
    assert permits.granted(Grant(1, only, 30.0), needed=5, requested_at=0.0, now=1.0) == 1
    assert permits.acquire(11.0) == Grant(0, only, 20.0)
    assert permits.acquire(31.0) is None


# --- messages


@given(st.binary(max_size=200))
def test_unreadable_messages_are_refused(body: bytes) -> None:
    for kind in (Acquire, GrantCounts, Heartbeat, Granted):
        with pytest.raises(InvalidMessage):
            decode(body, kind)


@pytest.mark.parametrize("wanted", [-1, 10**9 + 1])
def test_a_request_with_numbers_out_of_range_is_refused(wanted: int) -> None:
    with pytest.raises(InvalidMessage):
        decode(encode(Acquire((limit(3),), wanted)), Acquire)
    with pytest.raises(InvalidMessage):
        decode(encode(Acquire((limit(3, 0),), 1)), Acquire)


def test_requests_and_responses_arrive_as_sent() -> None:
    limits = (limit(3), limit(9, 1, "other"))
    assert decode(encode(Acquire(limits, 7)), Acquire) == Acquire(limits, 7)
    for grant in (Grant(7), Grant(2, limits[1], 0.25)):
        assert decode(encode(Granted.of(grant, limits)), Granted).grant(limits) == grant
    with pytest.raises(InvalidMessage):
        Granted(1, 2, 0.0).grant(limits)


def test_messages_keep_their_form_between_releases() -> None:
    only = limit(3)
    assert encode(Acquire((only,), 7)) == b'{"limits":[["account-minute","k",3,60]],"wanted":7}'
    assert encode(Granted.of(Grant(2, only, 0.5), (only,))) == b'{"granted":2,"violated":0,"after":0.5}'
    assert encode(GrantCounts.of("a", {"k": (60, {5: 1})})) == b'{"replica":"a","counts":{"k":[60,[[5,1]]]}}'
    assert encode(Heartbeat(["a"])) == b'{"members":["a"],"gone":false}'


def test_a_refused_call_learns_when_to_retry() -> None:
    problem = too_many_requests(Grant(0, limit(10), 12.3))
    assert problem.status == 429
    assert problem.headers == {
        "Retry-After": "13",
        "RateLimit-Policy": '"account-minute";q=10;w=60',
        "RateLimit": '"account-minute";r=0;t=13',
    }
