"""Links carry their own permission, for one purpose, one object and a limited time."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.access.signed_links import Links, derive_key
from nvcf_gateway.errors import HttpProblem

OLD, NEW = derive_key(b"old"), derive_key(b"new")


def query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def test_a_link_is_good_until_it_ends_and_over_a_change_of_keys() -> None:
    before = Links(lambda: (OLD,), lambda: "http://gateway")
    link = before.make("/x/1", "result-get", "1", expires_at=100.9)
    assert link.startswith("http://gateway/x/1?")
    after = Links(lambda: (NEW, OLD), lambda: "http://gateway")
    after.check(query(link), "result-get", "1", now=100)
    with pytest.raises(HttpProblem, match="expired"):
        after.check(query(link), "result-get", "1", now=101)
    with pytest.raises(HttpProblem, match="not valid"):
        Links(lambda: (NEW,), lambda: "").check(query(link), "result-get", "1", now=1)


@given(
    purpose=st.sampled_from(["result-put", "result-get", "asset-put", "asset-get"]),
    name=st.text(max_size=40),
    until=st.text(max_size=10),
    seal=st.text(max_size=70),
)
def test_nothing_else_is_good(purpose: str, name: str, until: str, seal: str) -> None:
    links = Links(lambda: (OLD,), lambda: "")
    genuine = query(links.make("/", "result-get", "1", expires_at=100))
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
            links.check(tried, tried_purpose, tried_name, now=1)  # type: ignore[arg-type] # any text may come
        assert caught.value.status == 403
