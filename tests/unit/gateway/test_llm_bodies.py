"""The members of a JSON body are found as a JSON parser finds them, and nothing else of it is touched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.llm.json_members import InvalidBody, members, members_in_slices, replaced
from nvcf_gateway.llm.models import parse_model

WANTED = ("model", "stream")
FUNCTION = "3b241101-e2bb-4255-8caf-4136c566a962"
VERSION = "0c6a5a0e-5f0c-4a0e-9b58-3e3a3f7f0a11"

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
names = st.sampled_from(WANTED) | st.text()
objects = st.dictionaries(names, values, max_size=8)
forms = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "indent": st.none() | st.integers(0, 3)},
)


def parsed(body: bytes) -> dict[str, Any] | None:
    """Return what the parser of the standard library says; None for no object, or a wanted name twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {**dict(pairs), "": [name for name, _ in pairs]}

    try:
        value = json.loads(body, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or any(value[""].count(name) > 1 for name in WANTED):
        return None
    return value


@given(objects, forms)
def test_members_are_found_in_any_form_of_an_object(value: dict[str, Any], form: dict[str, Any]) -> None:
    body = json.dumps(value, **form).encode(errors="surrogatepass")
    found = members(body, WANTED)
    assert set(found) == set(value) & set(WANTED)
    for name, span in found.items():
        assert json.loads(body[span.start : span.end]) == value[name]


@given(objects, st.text(), st.text())
def test_only_the_value_of_the_member_changes(value: dict[str, Any], old: str, new: str) -> None:
    body = json.dumps({**value, "model": old}, indent=1).encode()
    span = members(body, WANTED)["model"]
    changed = replaced(body, {span: json.dumps(new).encode()})
    assert json.loads(changed) == {**value, "model": new}
    assert changed.startswith(body[: span.start])
    assert changed.endswith(body[span.end :])


@given(st.binary() | st.text(alphabet='{}[]",:\\ mode1"').map(str.encode))
@example(b'{"model":"a","model":"b"}')
@example(b'{"model":"a","\\u006dodel":"b"}')
@example(b'{"a":"\\')
@example(b'{"a":[{"b":"]"}],"model":1}x')
def test_what_a_parser_takes_is_found_and_other_bytes_are_refused_or_skipped(body: bytes) -> None:
    try:
        found = members(body, WANTED)
    except InvalidBody:
        value = parsed(body) if body[:1] not in (b"\xef", b"\xff", b"\xfe", b"\x00") else None
        assert value is None or b"\x00" in body
        return
    value = parsed(body)
    if value is not None:
        assert set(found) == set(value[""]) & set(WANTED)


@pytest.mark.asyncio
async def test_a_large_body_is_scanned_in_slices() -> None:
    body = json.dumps({"messages": ["a"] * 50_000, "model": "m"}).encode()
    assert await members_in_slices(body, WANTED) == members(body, WANTED)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{"a":1}{', b'"model"']
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidBody):
        members(body, WANTED)


def test_names_of_models() -> None:
    plain = parse_model(f"{FUNCTION}/llama/8b")
    assert (plain.target.function_id, plain.target.version_id, plain.name) == (FUNCTION, None, "llama/8b")
    pinned = parse_model(f"{FUNCTION.upper()}/{VERSION}/llama")
    assert (pinned.target.function_id, pinned.target.version_id, pinned.name) == (FUNCTION, VERSION, "llama")
    # Without a third part the second one is the name, whatever it looks like.
    assert parse_model(f"{FUNCTION}/{VERSION}").name == VERSION


@pytest.mark.parametrize("text", ["", "gpt-5", FUNCTION, f"{FUNCTION}/", f"{FUNCTION}/{VERSION}/", "x" * 600])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(HttpProblem) as refused:
        parse_model(text)
    assert refused.value.status == 400
