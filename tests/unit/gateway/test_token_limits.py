"""Token limits: what is reserved and settled never exceeds what the buckets gave, and usage is read truly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.llm.body import parse_body
from nvcf_gateway.llm.token_budgets import MOST_BUCKETS, Charge, TokenBudgets
from nvcf_gateway.llm.token_limits import Kind, Refused, TokenBuckets, TokenLimit, Tokens, parse_rate
from nvcf_gateway.llm.usage import EDGE_BYTES, UsageReader, tokens_of
from nvcf_proto.ids import new_id
from nvcf_proto.models import FunctionVersion
from nvcf_proto.models.containers import Model
from nvcf_proto.models.llm import LlmConfig

FUNCTION = "3b241101-e2bb-4255-8caf-4136c566a962"
limits = st.builds(TokenLimit, st.sampled_from(Kind), st.integers(1, 1000), st.sampled_from([1, 60, 3600]))
tokens = st.builds(Tokens, st.integers(0, 400), st.integers(0, 400))
calls = st.lists(st.tuples(st.floats(0, 30), tokens, st.floats(0, 1)), max_size=40)


def test_rates_are_read() -> None:
    assert parse_rate(Kind.TOTAL, "1000-S, 5000-M") == [
        TokenLimit(Kind.TOTAL, 1000, 1),
        TokenLimit(Kind.TOTAL, 5000, 60),
    ]
    assert parse_rate(Kind.INPUT, None) == []


@given(st.lists(limits, min_size=1, max_size=4), calls)
def test_no_limit_is_exceeded_by_calls_that_keep_to_their_reservation(
    chosen: list[TokenLimit], made: list[tuple[float, Tokens, float]]
) -> None:
    buckets, now, used = TokenBuckets(chosen, 0.0), 0.0, [Tokens(0, 0)]
    for pause, wanted, share in made:
        now += pause
        if buckets.reserve(wanted, now) is None:
            spent = Tokens(int(wanted.input * share), int(wanted.output * share))
            buckets.settle(wanted, spent, now)
            used.append(spent)
        for limit in chosen:
            given_out = limit.tokens + now * limit.tokens / limit.seconds
            assert sum(each.of(limit.kind) for each in used) <= given_out + 1e-3


@given(st.lists(limits, min_size=1, max_size=4), calls)
def test_a_refused_call_passes_after_the_wait_that_it_is_told(
    chosen: list[TokenLimit], made: list[tuple[float, Tokens, float]]
) -> None:
    buckets, now = TokenBuckets(chosen, 0.0), 0.0
    for _, wanted, _ in made:
        refused = buckets.reserve(wanted, now)
        if refused is None:
            continue
        if refused.wait is None:
            assert wanted.of(refused.limit.kind) > refused.limit.tokens
            continue
        now += refused.wait + 0.001
        assert buckets.reserve(wanted, now) is None


def test_a_call_that_used_more_than_it_reserved_leaves_a_debt() -> None:
    buckets = TokenBuckets([TokenLimit(Kind.TOTAL, 100, 1)], 0.0)
    few, many = Tokens(10, 10), Tokens(10, 290)
    assert buckets.reserve(few, 0.0) is None
    buckets.settle(few, many, 0.0)
    refused = buckets.reserve(few, 0.0)
    assert isinstance(refused, Refused)
    assert refused.wait == pytest.approx(2.2)
    assert buckets.room(0.0).remaining == 0
    assert buckets.reserve(few, 2.3) is None


def test_an_estimate_of_the_input_makes_no_call_impossible() -> None:
    buckets = TokenBuckets([TokenLimit(Kind.TOTAL, 100, 1)], 0.0)
    assert buckets.reservation(Tokens(1_000_000, 30)) == Tokens(70, 30)
    assert buckets.reserve(buckets.reservation(Tokens(1_000_000, 30)), 0.0) is None
    refused = buckets.reserve(buckets.reservation(Tokens(1, 101)), 0.0)
    assert refused is not None
    assert refused.wait is None


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps(members).encode() + b"\n\n"


def test_usage_that_the_caller_did_not_ask_for_is_read_and_hidden() -> None:
    words = event(choices=[{"delta": {"content": 'the "usage":{"prompt_tokens":9}'}}], usage=None)
    usage = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})
    reader = UsageReader(hidden=True)
    assert reader.whole_events(words + usage + b"data: [DONE]\n\n") == words + b"data: [DONE]\n\n"
    assert reader.usage == Tokens(3, 4)
    shown = UsageReader(hidden=False)
    assert shown.whole_events(words + usage) == words + usage
    assert shown.usage == Tokens(3, 4)


def test_usage_of_a_response_object_is_read_from_its_last_event() -> None:
    reader = UsageReader(hidden=False)
    done = event(type="response.completed", response={"usage": {"input_tokens": 5, "output_tokens": 6}})
    assert reader.whole_events(event(type="response.created", response={"usage": None}) + done).endswith(done)
    assert reader.usage == Tokens(5, 6)


@pytest.mark.parametrize("size", [0, EDGE_BYTES - 40, 3 * EDGE_BYTES])
@pytest.mark.parametrize("step", [7, EDGE_BYTES, 10**6])
def test_usage_of_a_whole_body_is_read_from_its_ends(size: int, step: int) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 1}}
    text = 'x"usage":{"prompt_tokens":9}' + "a" * size
    body = json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()
    reader = UsageReader(hidden=False)
    for at in range(0, len(body), step):
        reader.body(body[at : at + step])
    reader.end()
    assert reader.usage == Tokens(3, 4)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ("", '"model":"m","stream_options":{"include_usage":true}'),
        (', "stream_options":null', '"model":"m", "stream_options":{"include_usage": true}'),
        (
            ', "stream_options":{"x":1,"include_usage":false}',
            '"model":"m", "stream_options":{"x": 1, "include_usage": true}',
        ),
        (', "stream_options":7', '"model":"m", "stream_options":7'),
    ],
)
async def test_the_usage_of_a_stream_is_asked_for(options: str, sent: str) -> None:
    body = await parse_body(f'{{ "a":1,"model":"{FUNCTION}/m"{options}  }}'.encode())
    assert not body.asks_for_usage
    assert body.data(add_usage=True).decode() == f'{{ "a":1,{sent}  }}'


@pytest.mark.asyncio
async def test_bounds_of_the_output() -> None:
    async def bound(members: dict[str, Any]) -> int | None:
        return (await parse_body(json.dumps({"model": f"{FUNCTION}/m", **members}).encode())).output_bound

    assert await bound({}) is None
    assert await bound({"max_tokens": 5}) == 5
    assert await bound({"max_tokens": 5, "max_completion_tokens": 7, "n": 3}) == 21
    assert await bound({"max_tokens": 9, "max_completion_tokens": 1}) == 9
    assert await bound({"max_tokens": "5"}) is None
    assert await bound({"max_output_tokens": 9, "n": True}) == 9
    with pytest.raises(HttpProblem):
        await parse_body(b'{"model": 5}')


@pytest.mark.parametrize("count", [10**4000, 10**12, -1])
def test_a_count_that_no_call_can_have_is_no_usage(count: int) -> None:
    assert tokens_of({"prompt_tokens": count, "completion_tokens": count}) is None
    assert tokens_of({"prompt_tokens": count, "completion_tokens": 4}) == Tokens(0, 4)


def test_buckets_of_an_account_are_bounded_and_do_not_touch_others() -> None:
    config = LlmConfig(token_rate_limit="100-W")

    def version() -> FunctionVersion:
        models = (Model(name="m", llm_config=config),)
        return FunctionVersion(new_id(), new_id(), "f", "a", 1.0, container_image="x", models=models)

    def charge(version: FunctionVersion, account: str) -> Charge:
        made = budgets.charge(version, "m", account, size=4, output=1, hidden=False)
        assert made is not None
        return made

    budgets, first = TokenBudgets(), version()
    held = charge(first, "many")
    for _ in range(MOST_BUCKETS - 1):
        charge(version(), "many")
    with pytest.raises(HttpProblem, match="wait until") as refused:
        charge(version(), "many")
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "60")
    # A model that has a bucket is not refused, and neither is another account.
    charge(first, "many").settle()
    charge(version(), "other")
    # A bucket that is full again makes room.
    held.settle()
    charge(version(), "many")
