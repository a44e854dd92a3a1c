"""Signed URLs and tokens of the dashboard: good for one purpose and a limited time."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.access.signed_tokens import (
    LIFE_SECONDS,
    DashboardTokens,
    InvalidDashboardToken,
    SignedUrls,
    TokenKind,
    derive_key,
    is_dashboard_token,
)
from nvcf_gateway.errors import HttpProblem
from nvcf_proto.models.keys import new_api_key

OLD, NEW = derive_key(b"old"), derive_key(b"new")


def query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def test_a_signed_url_is_good_until_it_expires_and_over_a_change_of_keys() -> None:
    before = SignedUrls(lambda: (OLD,), lambda: "http://gateway")
    url = before.make("/x/1", "result-get", "1", expires_at=100.9)
    assert url.startswith("http://gateway/x/1?")
    after = SignedUrls(lambda: (NEW, OLD), lambda: "http://gateway")
    after.check(query(url), "result-get", "1", now=100)
    with pytest.raises(HttpProblem, match="expired"):
        after.check(query(url), "result-get", "1", now=101)
    with pytest.raises(HttpProblem, match="not valid"):
        SignedUrls(lambda: (NEW,), lambda: "").check(query(url), "result-get", "1", now=1)


@given(
    purpose=st.sampled_from(["result-put", "result-get", "asset-put", "asset-get"]),
    name=st.text(max_size=40),
    until=st.text(max_size=10),
    seal=st.text(max_size=70),
)
def test_nothing_else_is_a_signed_url(purpose: str, name: str, until: str, seal: str) -> None:
    urls = SignedUrls(lambda: (OLD,), lambda: "")
    genuine = query(urls.make("/", "result-get", "1", expires_at=100))
    for tried, tried_name, tried_purpose in (
        ({"until": until, "seal": seal}, "1", "result-get"),
        ({**genuine, "until": until}, "1", "result-get"),
        (genuine, name, "result-get"),
        (genuine, "1", purpose),
        ({}, "1", "result-get"),
    ):
        if (tried, tried_name, tried_purpose) == (genuine, "1", "result-get"):
            continue
        with pytest.raises(HttpProblem) as caught:
            urls.check(tried, tried_purpose, tried_name, now=1)  # type: ignore[arg-type] # any text may come
        assert caught.value.status == 403


# --- tokens of the dashboard

NOW = 1_800_000_000.0
KEY = "0123456789ab"
TOKENS = DashboardTokens(lambda: (b"one" * 8, b"two" * 8))


@pytest.mark.parametrize("kind", list(TokenKind))
def test_tokens_are_good_until_they_expire(kind: TokenKind) -> None:
    text, until = TOKENS.make(kind, KEY, NOW)
    assert until == NOW + LIFE_SECONDS[kind]
    assert is_dashboard_token(text)
    assert TOKENS.read(text, kind, until) == KEY
    with pytest.raises(InvalidDashboardToken, match="has expired"):
        TOKENS.read(text, kind, until + 1)


def test_a_ticket_is_no_session_and_a_session_no_ticket() -> None:
    for made, wanted in ((TokenKind.TICKET, TokenKind.SESSION), (TokenKind.SESSION, TokenKind.TICKET)):
        with pytest.raises(InvalidDashboardToken):
            TOKENS.read(TOKENS.make(made, KEY, NOW)[0], wanted, NOW)
    relabelled = TOKENS.make(TokenKind.TICKET, KEY, NOW)[0].replace("ticket", "session")
    with pytest.raises(InvalidDashboardToken):
        TOKENS.read(relabelled, TokenKind.SESSION, NOW)


def test_other_keys_of_the_installation_stay_good_and_foreign_ones_do_not() -> None:
    older = DashboardTokens(lambda: (b"two" * 8,)).make(TokenKind.SESSION, KEY, NOW)[0]
    assert TOKENS.read(older, TokenKind.SESSION, NOW) == KEY
    foreign = DashboardTokens(lambda: (b"three" * 8,)).make(TokenKind.SESSION, KEY, NOW)[0]
    with pytest.raises(InvalidDashboardToken):
        TOKENS.read(foreign, TokenKind.SESSION, NOW)


@given(st.integers(0, 200), st.sampled_from("0123456789abcdefXYZ_-\n"))
def test_every_changed_character_is_detected(position: int, character: str) -> None:
    text, _ = TOKENS.make(TokenKind.SESSION, KEY, NOW)
    position %= len(text)
    changed = text[:position] + character + text[position + 1 :]
    if changed != text:
        with pytest.raises(InvalidDashboardToken):
            TOKENS.read(changed, TokenKind.SESSION, NOW)


def test_api_keys_look_different() -> None:
    assert not any(is_dashboard_token(new_api_key()) for _ in range(100))
