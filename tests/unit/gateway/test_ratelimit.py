"""Rate limits: which hold, how they count, and that no interval ever sees more calls than its limit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcf_gateway.ratelimit import wire
from nvcf_gateway.ratelimit.book import Book, Grant
from nvcf_gateway.ratelimit.budget import LARGEST_SHARE, Budget, loan_seconds
from nvcf_gateway.ratelimit.limiter import refusal
from nvcf_gateway.ratelimit.members import LIFE_SECONDS, Members, owner_of
from nvcf_gateway.ratelimit.policy import Limit, Rate, limits_of, parse_rates
from nvcf_gateway.ratelimit.window import HOLD, Window
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import FunctionVersion, RateLimit
from nvcf_proto.records import Fields

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
            RateLimit.from_fields(Fields({name: text}))
        assert caught.value.field == name
    with pytest.raises(InvalidRecord) as caught:
        RateLimit.from_fields(Fields({"perNcaIdConfigs": [{"ncaId": "a", "rate": text}]}))
    assert caught.value.field == "perNcaIdConfigs[0].rate"


def test_two_rates_of_one_account_are_refused() -> None:
    entry = {"ncaId": "a", "rate": "1-S"}
    with pytest.raises(InvalidRecord) as caught:
        RateLimit.from_fields(Fields({"perNcaIdConfigs": [entry, entry]}))
    assert caught.value.field == "perNcaIdConfigs[1].ncaId"


POLICY = RateLimit(rate="10-S", excluded=("x", "own"), account_rates=(("own", "3-M"),), user_rate="2-S")


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
        (RateLimit(account_rates=(("own", "1-D"),)), "a", "u", []),
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
        ).map(lambda each: tuple(each.items())),
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
    book, now, used = Book(), NOW + begin, []
    only = limit(calls, 1)
    for gap, wanted, late in arrivals:
        now += gap
        grant = book.take([only], wanted, now)
        assert 0 <= grant.granted <= wanted
        used += [now + late * 0.999 * loan_seconds((only,))] * grant.granted
    assert most_in_any_interval(used, 1.0) <= calls


@given(arrivals=ARRIVALS, calls=st.integers(1, 20))
def test_retry_after_is_when_a_call_passes_again_and_not_before(
    arrivals: list[tuple[float, int, float]], calls: int
) -> None:
    book, now = Book(), NOW
    only = limit(calls, 1)
    for gap, wanted, part in arrivals:
        now += gap
        grant = book.take([only], wanted, now)
        if grant.violated is None:
            continue
        assert grant.retry_after > 0
        assert book.take([only], 1, now + grant.retry_after * min(part, 0.98)).granted == 0
        assert book.take([only], 0, now + grant.retry_after + 1e-6) == Grant(0)
        now += grant.retry_after + 1e-6
        assert book.take([only], 1, now).granted == 1


def test_a_full_limit_is_used_to_the_full() -> None:
    book = Book()
    assert book.take([limit(100)], 150, NOW).granted == 100
    assert book.take([limit(100)], 1, NOW + 60).granted == 0
    assert book.take([limit(100)], 150, NOW + 60 * 1.03).granted == 100


def test_a_call_that_one_limit_refuses_counts_for_none() -> None:
    book = Book()
    account, user = limit(10, key="account"), limit(2, key="user")
    assert [book.take([account, user], 1, NOW).granted for _ in range(5)] == [1, 1, 0, 0, 0]
    other = limit(100, key="other user")
    assert book.take([account, other], 20, NOW).granted == 8


def test_a_changed_number_keeps_what_was_used() -> None:
    book = Book()
    assert book.take([limit(10)], 10, NOW).granted == 10
    assert book.take([limit(12)], 10, NOW).granted == 2
    assert book.take([limit(3)], 1, NOW).granted == 0


def test_zero_refuses_every_call() -> None:
    grant = Book().take([limit(0)], 1, NOW)
    assert (grant.granted, grant.retry_after) == (0, 60)


def test_what_no_longer_counts_is_forgotten() -> None:
    book = Book()
    for number in range(50):
        book.take([limit(5, 1, str(number))], 1, NOW)
    book.forget(NOW + 0.5)
    assert len(book) == 50
    book.forget(NOW + 1.1)
    assert len(book) == 0


# --- several replicas


@given(
    takes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=60),
    order=st.randoms(use_true_random=False),
)
def test_counts_told_late_twice_and_out_of_order_add_up(takes: list[tuple[int, int]], order: object) -> None:
    books = [Book() for _ in range(3)]
    only = limit(10_000)
    told: list[tuple[str, object]] = []
    for number, (replica, wanted) in enumerate(takes):
        books[replica].take([only], wanted, NOW + number * 0.01)
        told.append((str(replica), books[replica].changes()))
    told = [(str(n), dict(part)) for n, book in enumerate(books) for part in book.everything()] + told * 2
    order.shuffle(told)  # type: ignore[attr-defined]
    reader = Book()
    for name, counts in told:
        reader.merge(name, wire.decode_counts(wire.encode_counts("r", counts))[1])  # type: ignore[arg-type]
    total = sum(wanted for _, wanted in takes)
    assert reader.take([only], 10_000, NOW + 1).granted == 10_000 - total


def test_a_new_owner_goes_on_where_the_old_one_stopped() -> None:
    old, new = Book(), Book()
    old.take([limit(10)], 7, NOW)
    new.merge("old", old.changes())
    assert new.take([limit(10)], 9, NOW + 1).granted == 3
    old.merge("new", new.changes())
    assert old.take([limit(10)], 1, NOW + 2).granted == 0


@given(st.sets(st.integers(0, 50).map(str), min_size=2, max_size=8))
def test_only_the_keys_of_a_lost_member_move(members: set[str]) -> None:
    lost = min(members)
    for key in map(str, range(100)):
        before = owner_of(key, frozenset(members))
        after = owner_of(key, frozenset(members - {lost}))
        assert after == before or before == lost


def test_members_come_and_go() -> None:
    members = Members("a")
    assert members.heard("b", 0)
    assert not members.heard("b", 1)
    assert not members.heard("a", 1)
    assert members.alive() == {"a", "b"}
    assert {members.owner(str(key)) for key in range(50)} == {"a", "b"}
    members.expire(1 + LIFE_SECONDS + 0.1)
    assert {members.owner(str(key)) for key in range(50)} == {"a"}
    assert members.heard("b", 9)


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


def test_a_budget_borrows_what_was_lately_used_within_bounds() -> None:
    only = (limit(1000),)
    budget = Budget(only, borrows=True)
    assert budget.decide(0.0) is None
    assert budget.advance() == 1
    assert budget.answered(Grant(2), needed=1, asked_at=0.0, now=0.01) == 1
    assert budget.decide(0.02) == Grant(1)
    assert budget.decide(0.03) is None
    for _ in range(100):
        budget.decide(0.04)
    assert budget.advance() == 1000 * LARGEST_SHARE


def test_a_loan_ends() -> None:
    budget = Budget((limit(1000),), borrows=True)
    budget.decide(0.0)
    budget.answered(Grant(9), needed=1, asked_at=0.0, now=0.1)
    assert budget.decide(loan_seconds(budget.limits) - 0.01) == Grant(1)
    assert budget.decide(loan_seconds(budget.limits)) is None


def test_the_synchronous_check_borrows_nothing() -> None:
    budget = Budget((limit(1000),), borrows=False)
    budget.decide(0.0)
    assert budget.advance() == 0


def test_a_refusal_is_known_until_there_is_room() -> None:
    only = limit(10)
    budget = Budget((only,), borrows=True)
    assert budget.decide(0.0) is None
    assert budget.answered(Grant(1, only, 30.0), needed=5, asked_at=0.0, now=1.0) == 1
    assert budget.decide(11.0) == Grant(0, only, 20.0)
    assert budget.decide(31.0) is None


# --- words


@given(st.binary(max_size=200))
def test_unreadable_messages_are_told_apart(body: bytes) -> None:
    for read in (wire.decode_take, wire.decode_counts, wire.decode_members):
        with pytest.raises(wire.InvalidMessage):
            read(body)
    with pytest.raises(wire.InvalidMessage):
        wire.decode_grant(body, ())


def test_questions_and_answers_arrive_as_sent() -> None:
    limits = (limit(3), limit(9, 1, "other"))
    assert wire.decode_take(wire.encode_take(limits, 7)) == (limits, 7)
    for grant in (Grant(7), Grant(2, limits[1], 0.25)):
        assert wire.decode_grant(wire.encode_grant(grant, limits), limits) == grant


def test_a_refused_call_is_told_when_to_come_back() -> None:
    problem = refusal(Grant(0, limit(10), 12.3))
    assert problem.status == 429
    assert problem.headers == {
        "Retry-After": "13",
        "RateLimit-Policy": '"account-minute";q=10;w=60',
        "RateLimit": '"account-minute";r=0;t=13',
    }
