"""C11: results of every kind become JSON, or an error that names the place of what cannot."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import types
import uuid
from typing import Any

import numpy
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.function.response import encode_body, reply_of
from nvcf_worker.function.typed.plain import to_json
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.gateway import PeerGateway

ID = uuid.UUID("9a893737-d463-4b4a-90d9-3a9eef5fd50e")


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


@dataclasses.dataclass
class Point:
    x: Any


class Model(pydantic.BaseModel):
    number: float
    inner: dict[str, float] = {}


def strict(data: bytes) -> Any:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    return json.loads(data.decode(), parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({3}, [3]),
        (frozenset(("a",)), ["a"]),
        (decimal.Decimal("1.10"), "1.10"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (datetime.timedelta(hours=1, minutes=30), "PT1H30M"),
        (datetime.timedelta(days=-1, microseconds=1), "-PT23H59M59.999999S"),
        (datetime.timedelta(), "P0D"),
        (datetime.timedelta(days=400), "P400D"),
        (datetime.time(1, 2, 3), "01:02:03"),
        (collections.deque([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        ({"a": 1}.keys(), ["a"]),
        ({"a": 1}.values(), [1]),
        ({"a": 1}.items(), [["a", 1]]),
        (types.MappingProxyType({"a": {1}}), {"a": [1]}),
        (collections.UserList([1]), [1]),
        (ipaddress.ip_address("::1"), "::1"),
        ({ID: 1}, {str(ID): 1}),
        ({datetime.date(2026, 1, 2): 1}, {"2026-01-02": 1}),
        ({Colour.RED: Colour.PAIR}, {"red": [1, 2]}),
        ({numpy.int64(3): numpy.float32(0.5)}, {"3": 0.5}),
        ({"a\ud800": "\udfff"}, {"a\ud800": "\udfff"}),
        ([Model(number=float("nan"), inner={"a": float("inf")})], [{"number": None, "inner": {"a": None}}]),
        (numpy.array(["2026-01-02T03:04:05", "NaT"], "M8[ns]"), ["2026-01-02T03:04:05.000000000", None]),
        (numpy.datetime64("2026-01-02", "D"), "2026-01-02"),
        (numpy.datetime64("NaT", "ns"), None),
        (numpy.timedelta64(90, "m"), "PT1H30M"),
        (numpy.array([], "M8[ns]"), []),
        (Point({Point(1).x}), {"x": [1]}),
        ([numpy.array([[True]]), b"\x00", None], [[[True]], "AA==", None]),
    ],
)
def test_c11_forms(value: Any, expected: Any) -> None:
    assert strict(to_json(value)) == expected


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"items": [{"price": 1j}]}, "the result at 'items.0.price': complex is not JSON serializable"),
        ({"a": {"b": float("nan")}}, "the result at 'a.b': nan has no JSON form"),
        ([Point(object())], "the result at '0.x': object is not JSON serializable"),
        ({"a": {(1, 2): 3}}, "the result at 'a': a key is tuple"),
        ({"a": {float("inf"): 3}}, "the result at 'a': a key is inf"),
        ([1 << 20_000], "the result at '0': an integer of 20001 bits"),
        ({"a": iter([1])}, "the result at 'a': list_iterator is not JSON"),
        (object(), "the result: object is not JSON serializable"),
        (numpy.array([1.0, float("nan")]), "the result at '1': nan has no JSON form"),
    ],
)
def test_c11_errors_name_the_place(value: Any, place: str) -> None:
    with pytest.raises((TypeError, ValueError), match="^" + place.replace("(", r"\(")):
        to_json(value)


def test_c11_what_contains_itself_or_is_too_deep() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = [loop]
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, deep, {1, 2}, {"a": deep}):
        if isinstance(value, set):
            continue
        with pytest.raises(ValueError, match="nested too deeply"):
            to_json(value)
    while deep:  # freed step by step
        deep = deep.pop()


def test_c11_a_text_with_half_a_pair() -> None:
    assert encode_body("a\ud800b") == ("a\ufffdb".encode(), "text/plain; charset=utf-8")
    assert reply_of(["a\ud800"], None).body == b'["a\\ud800"]'


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(exclude_categories=())),
    st.binary(max_size=5), st.decimals(), st.uuids(), st.dates(), st.datetimes(), st.times(), st.timedeltas(),
    st.sampled_from([*Colour, 1j, object(), range(3), numpy.float64("nan"), numpy.int8(3), numpy.arange(3),
                     numpy.datetime64("2026-01-02", "ns"), pathlib.Path("/x"), Model(number=float("nan")),
                     {1: 2}.values()]),
)  # fmt: skip
KEYS = st.one_of(
    st.text(st.characters(exclude_categories=())), st.integers(), st.floats(), st.uuids(), st.dates(),
    st.sampled_from([*Colour, None, True, numpy.int64(1), (1, 2), datetime.timedelta(1), b"x"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(collections.deque),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3).map(types.MappingProxyType),
        inner.map(Point),
        st.sets(st.one_of(st.integers(), st.uuids(), st.dates()), max_size=3),
    ),
    max_leaves=12,
)


@given(VALUES)
def test_c11_every_mixture_is_json_or_an_error_with_a_place(value: Any) -> None:
    refusal = ""
    try:
        strict(to_json(value))
    except (TypeError, ValueError) as error:
        refusal = str(error)
    assert not refusal or refusal.startswith("the result")


async def test_c11_the_log_says_where(
    gateway: PeerGateway, start_worker: StartWorker, caplog: pytest.LogCaptureFixture
) -> None:
    await start_worker(lambda request: {"items": [{"price": {1j}}]}).ready()
    assert (await (await gateway.invoke()).answer()).status == 500
    assert "the result at 'items.0.price.0': complex is not JSON serializable" in caplog.text
